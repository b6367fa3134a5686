"""What each row of the table makes of rewards, in slow numpy loops and with the papers' constants.

Nothing of the package is used, its constants neither: a row whose constant moved disagrees here.
Letters: P prompts, G completions of a group, K reward columns, T tokens, B = P*G.
"""

import dataclasses
import itertools
import math

import numpy as np
import oracles_family as loops

P, G, T = 5, 6, 4
WIDTH = 12  # the longest completion that there may be


@dataclasses.dataclass(frozen=True)
class Facts:
    """A batch: everything that a row may look at. Rewards are quarters, in groups with ties."""

    rewards: np.ndarray  # [P, G]
    columns: np.ndarray  # [P, G, 4]
    lengths: np.ndarray  # [P, G], of another batch than the mask: up to WIDTH + 2
    mask: np.ndarray  # [P, G, T]
    tokens: np.ndarray
    segments: np.ndarray
    token_kl: np.ndarray
    values: np.ndarray
    mean_logp: np.ndarray  # [P, G]
    sequence_kl: np.ndarray
    strata: np.ndarray
    reference: np.ndarray
    prior: np.ndarray  # [P]
    alpha: np.ndarray  # [P]
    beta: np.ndarray
    prefix_scores: np.ndarray  # [P, G, T]
    answer_logp: np.ndarray  # [P, G]
    truncated: np.ndarray
    non_incorrect: np.ndarray
    repeats: np.ndarray
    chance: np.ndarray
    skilled: np.ndarray


def facts(seed: int, binary: bool = False) -> Facts:
    """A random batch; group 0 is constant, group 1 has an odd one, group 2 ties in pairs."""
    draw = np.random.default_rng(seed)
    choices = [0.0, 1.0] if binary else [0.0, 0.25, 0.5, 0.75, 1.0]
    columns = draw.choice(choices, (P, G, 4))
    columns[0], columns[1], columns[1, 2] = columns[0, 0], 0.0, 1.0
    columns[2, 3:] = columns[2, :3]
    eighths = lambda *shape: draw.integers(-8, 9, shape) / 8.0  # noqa: E731
    return Facts(
        rewards=columns[..., 0],
        columns=columns,
        lengths=draw.integers(1, WIDTH + 3, (P, G)),
        mask=np.arange(T) < draw.integers(1, T + 1, (P, G))[..., None],
        tokens=draw.integers(0, 2, (P, G, T)),
        segments=draw.integers(-1, 5, (P, G, T)),
        token_kl=eighths(P, G, T),
        values=eighths(P, G, T),
        mean_logp=draw.integers(-16, 0, (P, G)) / 8.0,
        sequence_kl=eighths(P, G),
        strata=draw.integers(0, 3, (P, G)),
        reference=np.arange(G) * np.ones((P, 1)) == 3,
        prior=eighths(P),
        alpha=draw.integers(1, 9, P) / 2.0,
        beta=draw.integers(1, 9, P) / 2.0,
        prefix_scores=eighths(P, G, T),
        answer_logp=draw.integers(-16, 0, (P, G)) / 8.0,
        truncated=draw.random((P, G)) < 0.7,
        non_incorrect=draw.random((P, G)) < 0.7,
        repeats=draw.random((P, G)) < 0.3,
        chance=(draw.integers(0, 10, (P, G)) + 0.5) / 10,
        skilled=draw.random((P, G)) < 0.5,
    )


def by_group(function, x):
    """The function of each group, stacked."""
    return np.stack([np.asarray(function(p, group), np.float64) for p, group in enumerate(x)])


def z(x, eps=1e-6):
    return by_group(lambda _, group: loops.zscore(group, eps), x)


def centred(x):
    return by_group(lambda _, group: group - group.mean(), x)


def by_token(values, mask):
    """[P, G] at every trained token: [B, T]."""
    return np.where(mask, values[..., None], 0.0).reshape(-1, mask.shape[2])


def overlong(f, buffer, penalty=1.0):
    out = f.rewards.copy()
    for p, i in np.ndindex(P, G):
        n, free = f.lengths[p, i], WIDTH - buffer
        if n > WIDTH:
            out[p, i] -= penalty
        elif n > free:
            out[p, i] += penalty * (free - n) / buffer
    return out


def token_rewards(f, kl_coef):
    """The outcome at the last token, k1 less at each; lists of the trained tokens, row by row."""
    out = []
    for p, i in np.ndindex(P, G):
        steps = [-kl_coef * kl for kl, m in zip(f.token_kl[p, i], f.mask[p, i], strict=True) if m]
        steps[-1] += f.rewards[p, i]
        out.append(steps)
    return out


def along(f, lists):
    """Lists of the trained tokens of each row back at their places: [B, T]."""
    out, mask = np.zeros((P * G, T)), f.mask.reshape(P * G, T)
    for row, steps in enumerate(lists):
        out[row, mask[row]] = steps
    return out


def returns(f):
    """C4."""
    later = [list(np.cumsum(steps[::-1])[::-1]) for steps in token_rewards(f, 0.01)]
    return loops.whiten(along(f, later), f.mask.reshape(-1, T), 1e-8)


def critic(f):
    """C6 with lambda .95."""
    values, mask = f.values.reshape(-1, T), f.mask.reshape(-1, T)
    lists = [
        loops.gae(steps, values[row, mask[row]], 1.0, 0.95)
        for row, steps in enumerate(token_rewards(f, 0.001))
    ]
    return loops.whiten(along(f, lists), mask, 1e-8)


def rank_grpo(f):
    """B6 log_decay and C17: hits to suffix gains, z-scores of each rank, the tokens of an item."""
    gains = np.zeros(f.columns.shape)
    for p, i, k in np.ndindex(gains.shape):
        gains[p, i, k] = sum(f.columns[p, i, j] / math.log2(j + 2) for j in range(k, 4))
    scores = loops.columns(gains, 1e-4)
    out = np.zeros((P, G, T))
    for p, i, t in np.ndindex(out.shape):
        item = f.segments[p, i, t]
        if f.mask[p, i, t] and 0 <= item < 4:
            out[p, i, t] = scores[p, i, item]
    return out.reshape(-1, T)


def c_grpo(f):
    """B4, the paper's form."""
    out = np.zeros((P, G))
    for p, i in np.ndindex(P, G):
        best = max(f.columns[p, :, 1])
        share = f.columns[p, i, 1] / best if best > 0 else 0.0
        out[p, i] = 0.7 * f.columns[p, i, 0] + 0.3 * f.columns[p, i, 0] * share
    return z(out)


def fgrpo(f):
    """C14 with multipliers of 1: the sum of all z-scores, whitened over the batch."""
    return loops.batch_zscore(loops.columns(f.columns, 1e-6).sum(2), 1e-6)


def spo(f):
    """C10."""
    value = f.alpha / (f.alpha + f.beta)
    return loops.batch_zscore(f.rewards - value[:, None], 1e-8)


def grao(f):
    """G4 as one loss of means over rows: 1.6 A_i N / G and .5 A_y N, N = 6 rows, G = 5 sampled."""
    out = np.zeros((P, G))
    for p in range(P):
        sampled = f.rewards[p, ~f.reference[p]]
        s = loops.std(sampled, 0)
        if s == 0:
            s = 0.0
        for i in range(G):
            gap = f.rewards[p, i] - sampled.mean()
            if f.reference[p, i]:
                a = np.clip(gap / (s + 1e-8), -10, 10) if gap else 0.0
                out[p, i] = 0.5 * a * 6
            else:
                out[p, i] = 0.0 if s == 0 else 1.6 * gap / (s + 1e-8) * 6 / 5
    return out


def lambda_switch(f):
    """rollouts.md B12 with lambda .2 of five prompts, so one: alpha .2."""
    right = f.rewards >= 1
    chosen = int(np.argmax(right.mean(1)))
    out = f.rewards.copy()
    n = f.lengths[chosen][right[chosen]].astype(float)
    for i in range(G):
        if right[chosen, i]:
            s = n.std() if n.std() > 0 else 1.0
            away = (f.lengths[chosen, i] - n.mean()) / s
            out[chosen, i] = 1 - 0.2 / (1 + math.exp(-away))
        else:
            out[chosen, i] = 0.0
    return z(out)


def budget(f):
    """rollouts.md B11 at step 0: success .6, length .3 around 8 tokens, format .1."""
    n = f.lengths / 8
    length = np.where(n <= 1, n, np.maximum(2 - n, 0))
    return z(0.6 * f.columns[..., 0] + 0.3 * length + 0.1 * f.columns[..., 1])


def surrogate(f):
    """rollouts.md B25 with its peak at half of the longest completion."""
    out = np.zeros((P, G))
    for p, i in np.ndindex(P, G):
        x, (thinks, answers) = f.lengths[p, i] / WIDTH, f.columns[p, i, :2]
        s = 1 - (1 - x / 0.5) ** 2 if x <= 0.5 else 1 - 2 * ((x - 0.5) / 0.5) ** 2
        out[p, i] = (thinks + answers) / 2 + s if answers > 0 else min(s, 0.0)
    return z(out)


def gated(f):
    """rollouts.md B20."""
    form, outcome, score = (f.columns[..., k] for k in range(3))
    return z(form + outcome + outcome * score)


def rare(f):
    return z(by_group(lambda p, r: r * (1 - 0.25 * loops.ranks(f.mean_logp[p]) / G), f.rewards))


def mc_grpo(f):
    found, dropped = loops.mc_grpo(f.rewards)
    found[np.arange(P), dropped] = 0.0
    return found


def leave_one_out(f):
    r = f.rewards - 0.03 * f.sequence_kl
    return by_group(lambda _, x: [a - (x.sum() - a) / (G - 1) for a in x], r)


def squashed(f):
    return z(by_group(lambda _, r: [loops.squash(x) for x in r], f.rewards), 1e-4)


def gdpo(f):
    return loops.batch_zscore(loops.columns(f.columns[..., :3], 1e-4).sum(2), 1e-4)


def baseline_whitened(f):
    return loops.whiten(by_token(centred(f.rewards), f.mask), f.mask.reshape(-1, T), 1e-8)


def grpo(f):
    return z(f.rewards)


def exits(f):
    """S-GRPO: every correct exit halves what a later one gets."""

    def one(_, group):
        right = [sum(r >= 1 for r in group[: i + 1]) for i in range(len(group))]
        return [2.0 ** (1 - n) if r >= 1 else 0.0 for r, n in zip(group, right, strict=True)]

    return z(by_group(one, f.rewards))


def care(f):
    """GRPO-CARE: half as much again for right answers that the reference finds likely."""

    def one(p, group):
        likely = [min(math.exp(x), 0.95) for x in f.answer_logp[p]]
        right = [i for i, r in enumerate(group) if r > 0.1 and r >= group.mean()]
        bound = np.mean([likely[i] for i in right]) - 0.01 if right else 0.0
        return [1.5 * r if i in right and likely[i] >= bound else r for i, r in enumerate(group)]

    return z(by_group(one, f.rewards), 1e-4)


def preferred_steps(f):
    """WS-GRPO: mean gain of the steps, five times the outcome, 1 off outside of 3 to 6 steps."""
    out = np.zeros((P, G))
    for p, i in np.ndindex(P, G):
        number, scores, n = f.segments[p, i], f.prefix_scores[p, i], f.mask[p, i].sum()
        ends = [t for t in range(n) if t == n - 1 or number[t + 1] != number[t]]
        after = [scores[0], *(scores[min(t + 1, n - 1)] for t in ends)]
        gains = [1 / (1 + math.exp(a - b)) for a, b in itertools.pairwise(after)]
        outside = not 3 <= len(ends) <= 6
        out[p, i] = np.mean(gains) + 5 * f.rewards[p, i] - outside
    return z(out)


def spared(f):
    """MicroCoder: some rows that were cut off are counted and not trained."""
    out = f.truncated & f.non_incorrect & ~f.repeats & (f.chance < 0.3)
    return np.where(out, 0.0, z(f.rewards))


def with_skills(f):
    """ARISE in its second phase: one more for right completions that worked with a skill."""
    return z(f.rewards + [[float(s and r == 1) for s, r in zip(*x, strict=True)]
                          for x in zip(f.skilled, f.rewards, strict=True)])  # fmt: skip


_GRPO = ("grpo", "gspo", "gspo_token", "luspo", "gmpo", "sapo", "vespo", "ctpo", "mu_grpo")
ADVANTAGES = {
    **dict.fromkeys((*_GRPO, "knapsack", "v0", "reg_grpo"), grpo),
    **dict.fromkeys(("dapo", "cispo"), lambda f: z(overlong(f, 4))),
    **dict.fromkeys(("disco", "drpo", "sft"), lambda f: f.rewards),
    "g2rpo_a": lambda f: z(f.rewards, 1e-4),
    "dr_grpo": lambda f: centred(f.rewards),
    "rloo": leave_one_out,
    "reinforce_pp": returns,
    "reinforce_pp_baseline": baseline_whitened,
    "ppo_clip": critic,
    "bnpo": lambda f: loops.bnpo(f.rewards),
    "mc_grpo": mc_grpo,
    "ngrpo": lambda f: loops.ngrpo(f.rewards),
    "spo": spo,
    "stratified_grpo": lambda f: loops.stratified(f.rewards, f.strata),
    "gdpo": gdpo,
    "mo_grpo": lambda f: loops.columns(f.columns[..., :3], 1e-6).sum(2),
    "multi_objective_grpo": lambda f: z(f.columns[..., :3].sum(2)),
    "c_grpo": c_grpo,
    "fgrpo": fgrpo,
    "unlikeliness": rare,
    "tempsamp_r1": squashed,
    "weighted_grpo": lambda f: z(2 * f.rewards - 1),
    "xrpo": lambda f: loops.novelty(f.rewards, f.mean_logp),
    "tempo": lambda f: loops.tempo(f.rewards, f.tokens, f.mask).reshape(-1, T),
    "masa": lambda f: z(f.columns[..., :3].mean(2)),
    "v0_5": lambda f: loops.v0_5(f.rewards, f.prior),
    "grao": grao,
    "rank_grpo": rank_grpo,
    "train_long_think_short": budget,
    "grpo_lambda": lambda_switch,
    "posterior_grpo": gated,
    "format_length": surrogate,
    **dict.fromkeys(
        ("guide_grpo", "scaf_grpo", "cgi", "expo", "igrpo", "ws_preference", "hill"), grpo
    ),
    **dict.fromkeys(
        ("pairing", "vspo", "ps_grpo", "rgr_grpo", "thinktuning", "cobalt", "grpo_smu"), grpo
    ),
    "s_grpo": exits,
    "arise": with_skills,
    "prioritized_replay": lambda f: centred(f.rewards),
    "grpo_care": care,
    "ws_grpo": preferred_steps,
    "microcoder_grpo": spared,
    "m_grpo": lambda f: by_group(
        lambda _, group: loops.zscore(group, 1e-6, 0),
        (0.9 * f.columns[..., 0] + 0.1 * f.columns[..., 1]) * (f.columns[..., 1] > 0),
    ),
    "autorule": lambda f: z(f.columns[..., 0] + 10 * f.columns[..., 1]),
    "info_consistency": lambda f: by_group(
        lambda _, group: loops.zscore(group, 1e-6, 0), f.rewards
    ),
}
COLUMNS = {
    **dict.fromkeys(("gdpo", "mo_grpo", "multi_objective_grpo", "masa", "posterior_grpo"), 3),
    **dict.fromkeys(("c_grpo", "train_long_think_short", "format_length", "autorule", "m_grpo"), 2),
    **dict.fromkeys(("fgrpo", "rank_grpo"), 4),
}


# Losses that couple a group (G1 to G3), as functions of the log-probs of all rows, in float64.


def _scores(logp, mask):
    return [
        [sum(x[m]) / max(m.sum(), 1) for x, m in zip(group, steps, strict=True)]
        for group, steps in zip(logp, mask, strict=True)
    ]


def _discriminative(logp, mask, labels, omega):
    total = 0.0
    for p, s in enumerate(_scores(logp, mask)):
        filled = mask[p].any(1)
        right = [i for i in range(len(s)) if labels[p, i] == 1 and filled[i]]
        wrong = [i for i in range(len(s)) if labels[p, i] == 0 and filled[i]]
        if right and wrong:
            share = omega(p, right)
            total += sum(w * s[i] for w, i in zip(share, right, strict=True))
            total -= 10 * math.log(sum(math.exp(s[i] / 10) for i in wrong) / len(wrong))
    return -total / len(labels)


def disco(logp, old, mask, labels):
    """G1, disco_logL at tau 10."""
    return _discriminative(logp, mask, labels, lambda p, right: [1 / len(right)] * len(right))


def drpo(logp, old, mask, labels):
    """G2 with lambda .1, and lengths over 8192."""

    def omega(p, right):
        e = [math.exp((1 - mask[p, i].sum() / 8192) / 0.1) for i in right]
        return [x / sum(e) for x in e]

    return _discriminative(logp, mask, labels, omega)


def reg_grpo(logp, old, mask, targets):
    """G3: squared distance of the z-scored sequence log-ratios from the advantages."""
    total, rows = 0.0, 0
    for p, goals in enumerate(targets):
        counted = [i for i in range(len(goals)) if mask[p, i].any()]
        rows += len(counted)
        if not any(goals[i] for i in counted):
            continue
        rho = np.array([sum((logp[p, i] - old[p, i])[mask[p, i]]) for i in counted])
        away = (rho - rho.mean()) / (loops.std(rho) + 1e-6)
        total += sum((goals[i] - a) ** 2 for i, a in zip(counted, away, strict=True))
    return total / rows


LATE = {"disco": disco, "drpo": drpo, "reg_grpo": reg_grpo}


def hinge(logp, old, mask):
    """F2: half of beta times the squared hinge on the drift; its gradient is the code's."""
    drift = (old - logp)[mask].mean()
    return 0.5 * 1e3 * max(drift - 1e-4, 0.0) ** 2


def finite_differences(function, x, mask, h=1e-6):
    """Central differences of a function of one array, at the places of the mask, in float64."""
    out = np.zeros(x.shape)
    for place in zip(*np.nonzero(mask), strict=True):
        low, high = x.astype(np.float64), x.astype(np.float64)
        low[place] -= h
        high[place] += h
        out[place] = (function(high) - function(low)) / (2 * h)
    return out
