"""The papers' equations in slow, obvious numpy loops (float64), and the fixtures FB and FT.

Written from the equations, not from the package: only the `Method` record is shared. Gradients are
taken by complex steps, so that stop-gradients are explicit. The advantages of single methods are in
`oracles_family.py`.
"""

import contextlib
from collections.abc import Iterator

import numpy as np

from jgrpo.algo import Method

FB = np.array([[1, 0, 0, 0], [1, 1, 1, 0]], np.float32)
FT_OLD = np.array([[-1, -2, -0.5], [-0.7, -1.5, -3]], np.float32)
FT_DELTA = np.array([[0.3, -0.1, 0.05], [0.25, -0.35, 0.7]], np.float32)
FT_LOGP = FT_OLD + FT_DELTA
FT_MASK = np.array([[True, True, True], [True, True, False]])
FT_ADVANTAGES = np.array([1, -1], np.float32)
FT_REF = np.array([[-1.2, -1.9, -0.5], [-0.6, -1.7, -2]], np.float32)


def advantages(m: Method, rewards, *, valid=None, lengths=None, limit=None, sequence_kl=None):
    """Shape, base and scale, one group and one completion at a time."""
    rewards = np.asarray(rewards, np.float64)
    out = np.zeros(rewards.shape)
    for p in range(rewards.shape[0]):
        rows = [i for i in range(rewards.shape[1]) if valid is None or valid[p, i]]
        shaped = {}
        for i in rows:
            shaped[i] = rewards[p, i]
            if m.shape == "overlong":
                free, n = limit - m.overlong_buffer_tokens, lengths[p, i]
                if free < n <= limit:
                    shaped[i] += m.overlong_penalty * (free - n) / m.overlong_buffer_tokens
                elif n > limit:
                    shaped[i] -= m.overlong_penalty
            if m.kl_in == "reward" and m.penalty == "k1":
                shaped[i] -= m.kl_coef * sequence_kl[p, i]
        for i in rows:
            others = [shaped[j] for j in rows if j != i]
            base = {
                "none": 0.0,
                "group_mean": sum(shaped.values()) / len(rows),
                "leave_one_out": sum(others) / len(others) if others else shaped[i],
            }[m.base]
            out[p, i] = shaped[i] - base
            if m.scale == "group_std":
                mean = sum(shaped.values()) / len(rows)
                squares = sum((r - mean) ** 2 for r in shaped.values())
                constant = len(set(shaped.values())) == 1
                std = 0.0 if constant else np.sqrt(squares / (len(rows) - m.scale_ddof))
                out[p, i] = 0.0 if constant else out[p, i] / (std + m.scale_eps)
    return out


def token_weights(m: Method, mask):
    """One token at a time."""
    out = np.zeros(mask.shape)
    lengths = [sum(bool(x) for x in row) for row in mask]
    filled = sum(n > 0 for n in lengths)
    constant = max(m.constant_length_tokens, 1)
    for i, n in enumerate(lengths):
        for t in range(mask.shape[1]):
            if mask[i, t]:
                out[i, t] = {
                    "token_mean": 1 / sum(lengths),
                    "sequence_mean": 1 / (n * filled),
                    "sequence_sum": 1 / filled,
                    "constant_length": 1 / (len(lengths) * constant),
                    "token_sum": 1,
                    "sequence_mean_all": 1 / (n * len(lengths)),
                    "sequence_sum_constant": 1 / (filled * constant),
                }[m.weights]
    return out


# Gradients by complex steps: f(x + ih) = f(x) + ih f'(x) exactly, for h so small that h^2 is 0. A
# stop-gradient takes the real part, and comparisons are made on real parts. For finite differences
# a stop-gradient is held at the value that it had when the loss was first computed.

H = 1e-100
_HELD: list[float] | None = None
_PLACE = 0


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside, the first `policy_value` sets the values of all stop-gradients for the others."""
    global _HELD
    _HELD = []
    try:
        yield
    finally:
        _HELD = None


def stopped(x):
    """The value without gradient."""
    global _PLACE
    if _HELD is None:
        return x.real
    if len(_HELD) == _PLACE:
        _HELD.append(x.real)
    _PLACE += 1
    return _HELD[_PLACE - 1]


def policy_value(m: Method, logp, old, mask, per_token, ref, segments, behavior):
    """The loss alone, of log-probs in float64."""
    global _PLACE
    _PLACE = 0
    arrays = (logp, old, per_token, ref, token_weights(m, mask), segments, behavior, mask)
    filled = [i for i in range(mask.shape[0]) if mask[i].any()]
    lists = [[[np.float64(y) for y in x[i][mask[i]]] for x in arrays] for i in filled]
    return sum(row_loss(m, *row) for row in lists)


def clamp(x, low, high):
    """The value within bounds; a constant outside of them."""
    return low if x.real < low else high if x.real > high else x


def levels(m: Method, d, lp, segments):
    """The log-ratio of each token's unit; lists over the trained tokens of one row."""
    number = len(d)
    if m.level == "token":
        return d
    if m.level == "sequence":
        return [sum(d) / number] * number
    if m.level == "sequence_token":
        mean = stopped(sum(d) / number)
        return [mean + x - stopped(x) for x in lp]
    if m.level == "sequence_sum":
        return [clamp(stopped(sum(d)), -20.0, 20.0)] * number
    if m.level == "segment":
        items = [[d[s] for s in range(number) if segments[s] == segments[t]] for t in range(number)]
        means = [sum(item) / len(item) for item in items]
        return [mean if segments[t] >= 0 else 0.0 for t, mean in enumerate(means)]
    assert m.level in ("prefix_sum", "prefix_mean")
    out = []
    for t in range(number):
        value = stopped(sum(d[: t + 1]))
        value /= 1 if m.level == "prefix_sum" else t + 1
        out.append(10.0 if value > 10 else value + lp[t] - stopped(lp[t]))
    return out


def clipped(rho, advantage, low, high, dual):
    """PPO's min, and the dual clip if there is one."""
    value, bounded = rho * advantage, clamp(rho, low, high) * advantage
    if bounded.real < value.real:
        value = bounded
    if dual > 0 and advantage < 0 and value.real < dual * advantage:
        value = dual * advantage
    return value


def surrogates(m: Method, level, advantage, lp):
    """Phi of each token; lists over the trained tokens of one row."""
    out = []
    for t, (ell, a, x) in enumerate(zip(level, advantage, lp, strict=True)):
        rho = np.exp(ell)
        if m.trust == "clip":
            phi = clipped(rho, a, 1 - m.clip_low, 1 + m.clip_high, m.dual_clip)
        elif m.trust == "linear":
            phi = a * x
        elif m.trust == "cispo":
            phi = clamp(stopped(rho), 1 - m.clip_low, 1 + m.clip_high) * a * x
        elif m.trust == "sapo":
            tau = m.tau_pos if a > 0 else m.tau_neg
            away = tau * (rho - 1)
            gate = 1 / (1 + np.exp(-away)) if away.real > -700 else 0.0
            phi = 4 / tau * gate * a
        elif m.trust == "vespo":
            k, lam = (m.vespo_k_pos, m.vespo_lambda_pos)
            if a < 0:
                k, lam = (m.vespo_k_neg, m.vespo_lambda_neg)
            phi = np.exp(k * stopped(ell) + lam * (1 - stopped(rho))) * a * x
        elif m.trust == "ctpo":
            q = (t + 1) ** m.clip_ratio_la_power
            low, high = np.exp(-m.la_clip_low * q), np.exp(m.la_clip_high * q)
            phi = clipped(rho, a, low, high, np.exp(m.la_clip_c * q))
        else:
            assert m.trust == "gmpo"
            held = []
            for other in level:
                s = np.sign(a)
                bounded = clamp(other, -m.cliprange, m.cliprange)
                held.append(bounded if (s * bounded).real < (s * other).real else other)
            phi = a * np.exp(sum(held) / len(held))
        out.append(phi)
    return out


def vetoes(m: Method, d, mismatch, advantage, entropy_mask):
    """V times c of each token; lists over the trained tokens of one row."""
    ratio = [np.exp(stopped(x)) for x in d]
    out = []
    for t, a in enumerate(advantage):
        above = m.trigger_high if m.trigger_high > 0 else np.inf
        triggered = any(r < m.trigger_low or r > above for r in ratio[:t])
        drift = -stopped(sum(d)) / len(d)
        weight = np.exp(mismatch[t])
        whole = np.exp(clamp(sum(mismatch), -20.0, 20.0))
        veto = {
            "none": 1.0,
            "suffix": 0.0 if a < 0 and triggered else 1.0,
            "off_policy_row": 1.0 if a >= 0 or drift <= m.off_policy_delta else 0.0,
            "top_entropy": entropy_mask[t],
        }[m.veto]
        correction = {
            "none": 1.0,
            "is_token": min(max(weight, m.is_low), m.is_high),
            "is_mask": weight if m.is_low <= weight <= m.is_high else 0.0,
            "is_sequence": min(max(whole, m.is_low), m.is_high),
        }[m.correction]
        out.append(veto * correction)
    return out


def top_entropy(m: Method, entropy, mask):
    """Tokens at or above numpy's own quantile of the trained tokens."""
    trained = entropy[mask].astype(np.float64)
    if trained.size == 0:
        return np.zeros(mask.shape, bool)
    threshold = np.quantile(trained, 1 - m.top_entropy_quantile)
    return mask & (entropy >= threshold - 1e-6)


def penalties(m: Method, lp, ref):
    """Kappa of each token."""
    out = []
    for x, r in zip(lp, ref, strict=True):
        u = clamp(x - r, -20.0, 20.0)
        k2 = u * u / 2
        k3 = np.exp(-u) + u - 1
        choices = {
            "none": 0.0,
            "k1": u,
            "k2": k2,
            "k3": k3,
            "k3_plus": stopped(k3) + k2 - stopped(k2),
        }
        out.append(choices[m.penalty])
    return out


def row_loss(m: Method, lp, old, advantage, ref, weights, segments, behavior, entropy_mask):
    """The part of the loss that one row makes; lists over its trained tokens."""
    d = [clamp(x - y, -20.0, 20.0) for x, y in zip(lp, old, strict=True)]
    mismatch = [clamp(x - y, -20.0, 20.0) for x, y in zip(old, behavior, strict=True)]
    phi = surrogates(m, levels(m, d, lp, segments), advantage, lp)
    v = vetoes(m, d, mismatch, advantage, entropy_mask)
    kappa = penalties(m, lp, ref)
    beta = m.kl_coef if m.kl_in == "loss" else 0.0
    return sum(w * (-a * b + beta * c) for w, a, b, c in zip(weights, v, phi, kappa, strict=True))


def policy_loss(
    m: Method,
    logp,
    old_logp,
    mask,
    per_token,
    ref_logp=None,
    segments=None,
    behavior_logp=None,
    entropy_mask=None,
):
    """Loss and its gradient by logp; `per_token` are advantages [B, T]."""
    weights = token_weights(m, mask)
    ref_logp = old_logp if ref_logp is None else ref_logp
    behavior_logp = old_logp if behavior_logp is None else behavior_logp
    segments = np.zeros(mask.shape, int) if segments is None else segments
    marked = np.ones(mask.shape) if entropy_mask is None else entropy_mask
    loss, gradient = 0.0, np.zeros(mask.shape)
    for i in range(mask.shape[0]):
        tokens = [t for t in range(mask.shape[1]) if mask[i, t]]
        pick = lambda x, i=i, tokens=tokens: [float(x[i, t]) for t in tokens]  # noqa: E731
        rest = [old_logp, per_token, ref_logp, weights, segments, behavior_logp, marked]
        rest = [pick(x) for x in rest]
        for k, t in enumerate(tokens):
            lp = [complex(x, H * (s == k)) for s, x in enumerate(pick(logp))]
            part = complex(row_loss(m, lp, *rest))
            gradient[i, t] = part.imag / H
            loss += part.real / len(tokens)
    return loss, gradient
