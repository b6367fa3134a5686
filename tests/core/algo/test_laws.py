"""The laws of objectives.md, section 3, as properties of random groups.

Laws 1 to 4, 14 and 15 stand beside what they speak of, too: test_advantages.py, test_levels.py,
test_trust.py, test_weights.py, test_penalties.py. Arrays have few shapes, so that little compiles;
groups of other sizes are those whose other rows do not count: a constant group, one of a single
row, an empty one, and random ones with ties.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jgrpo.algo import (
    METHODS,
    Estimates,
    Side,
    advantages,
    allocation,
    init_state,
    late_advantages,
    method,
    policy_loss,
)

F = np.float32
P, G, T = 5, 6, 4
seeds = st.integers(0, 2**32 - 1)
laws = settings(max_examples=25, deadline=None)


@functools.partial(jax.jit, static_argnums=0)
def _advantages(m, rewards, side, state):
    return advantages(m, rewards, side, state)


def values(name, rewards, side=None, state=None, **overrides):
    m = method(name, **overrides)
    return np.asarray(_advantages(m, np.asarray(rewards, F), side, state).values)


def drawn(seed, choices=(0.0, 0.25, 0.5, 1.0), columns=0):
    """Rewards, and which rows count: of the second group one, of the third none."""
    draw = np.random.default_rng(seed)
    rewards = draw.choice(choices, size=(P, G, columns) if columns else (P, G)).astype(F)
    rewards[0] = rewards[0, 0]
    valid = draw.random((P, G)) < 0.8
    valid[:, :2] = True
    valid[1], valid[2] = np.arange(G) == draw.integers(G), False
    return rewards, valid, draw


def mean_of(rewards, valid):
    """Of the rows that count, group by group; 0 where none does."""
    return np.array([r[v].mean() if v.any() else 0.0 for r, v in zip(rewards, valid, strict=True)])


def close(got, expected, atol=2e-5):
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=atol)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(m, logp, old, mask, adv):
    loss = lambda x: policy_loss(m, x, old_logp=old, mask=mask, advantages=adv)[0]  # noqa: E731
    return jax.value_and_grad(loss)(logp)


sizes = st.sampled_from([(1, 1), (3, 4)])


def completions(seed, shape, spread):
    """Log-probs, mask with empty rows and gaps, one advantage a row, some of them 0."""
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=shape).astype(F)
    logp = (old + spread * draw.normal(size=shape)).astype(F)
    mask = draw.random(shape) < 0.7
    return logp, old, mask, draw.choice([-1.5, -0.25, 0.0, 1.0], shape[0]).astype(F)


@laws
@given(seeds, sizes, st.sampled_from([0.02, 0.5, 5.0]))
def test_law_2_gmpo_without_clipping_is_gspo_without_clipping(seed, shape, spread):
    data = completions(seed, shape, spread)
    ours = _value_and_grad(method("gmpo", cliprange=1e9), *data)
    theirs = _value_and_grad(method("gspo", clip_low=1.0, clip_high=1e9), *data)
    for got, expected in zip(ours, theirs, strict=True):
        scale = max(1.0, float(np.abs(expected).max()))
        close(got, expected, atol=2e-6 * scale)


@laws
@given(seeds, sizes, st.sampled_from([0.1, 1.0, 4.0]), st.sampled_from([0.3, 1.05, 20.0]))
def test_law_4_at_ratio_one_the_gate_of_sapo_has_the_slope_of_ppo(seed, shape, up, down):
    """And the value 2 A / tau in place of A, whatever tau is."""
    _, old, mask, adv = completions(seed, shape, 0.0)
    m = method("sapo", tau_pos=up, tau_neg=down)
    loss, slope = _value_and_grad(m, old, old, mask, adv)
    _, ppo = _value_and_grad(method("grpo", penalty="none"), old, old, mask, adv)
    close(slope, ppo, atol=1e-7)
    filled = mask.any(1)
    offset = 2 * adv / np.where(adv > 0, up, down)
    close(loss, -np.sum(offset[filled]) / max(filled.sum(), 1), atol=1e-6)


@laws
@given(seeds)
def test_law_14_the_row_that_mc_grpo_drops_has_advantage_0(seed):
    """One row of each group that has any, at the lower median; then the others are as before."""
    rewards, valid, _ = drawn(seed)
    found = _advantages(METHODS["mc_grpo"], rewards, Side(valid=valid), None)
    keep = np.asarray(found.keep)
    whole = values("mc_grpo", rewards, Side(valid=valid), post="none")
    dropped = valid & ~keep
    assert (dropped.sum(1) == valid.any(1)).all()
    assert not whole[dropped].any()
    assert np.array_equal(found.values, whole)
    middle = [
        sorted(r[v])[(v.sum() - 1) // 2] for r, v in zip(rewards, valid, strict=True) if any(v)
    ]
    assert rewards[dropped].tolist() == middle


@laws
@given(seeds, st.sampled_from([4, 8, 12]))
def test_law_5_beta_of_three_halves_is_a_multiple_of_the_population_z_score(seed, size):
    """Pass rates 1/4, 1/2, 3/4 fit alpha = beta = 3/2 by their moments, in any order."""
    draw = np.random.default_rng(seed)
    rates = draw.permutation([1, 2, 3])
    rewards = np.stack([draw.permutation(np.arange(size) < k * size // 4) for k in rates])
    grpo = values("grpo", rewards, scale_ddof=0, scale_eps=0.0)
    close(values("bnpo", rewards), np.pi / 8 * grpo)


@laws
@given(seeds)
def test_law_5_the_scale_is_the_density_of_beta_and_that_of_one_group_is_flat(seed):
    rewards, valid, _ = drawn(seed, choices=(0.0, 1.0))
    centred = values("dr_grpo", rewards, Side(valid=valid))
    got = values("bnpo", rewards, Side(valid=valid))
    p = mean_of(rewards.astype(float), valid)
    there, a, b = p[valid.any(1)], 1.0, 1.0
    if np.ptp(there) > 0:
        kappa = there.mean() * (1 - there.mean()) / there.var(ddof=1) - 1
        a, b = (max(1.0, 1 + kappa * share / 3) for share in (there.mean(), 1 - there.mean()))
    mixed = (p > 0) & (p < 1)
    density = np.where(mixed, stats.beta.pdf(np.where(mixed, p, 0.5), a, b), 1.0)
    close(got, centred / density[:, None], atol=1e-4)
    alone = np.repeat(rewards[3:4], P, axis=0)  # every group has the same pass rate
    close(values("bnpo", alone), values("dr_grpo", alone))


@laws
@given(seeds)
def test_law_6_virtual_completions(seed):
    rewards, valid, draw = drawn(seed)
    side = Side(valid=valid)
    close(values("ngrpo", rewards, side, add_max_reward_num=0), values("grpo", rewards, side))
    low = np.full((P, G), draw.choice([0.0, 0.5, -3.0]), F)
    size = valid.sum(1, keepdims=True)
    close(values("ngrpo", low, side, scale_eps=0.0), np.where(valid, -1 / np.sqrt(size + 1), 0))
    assert not values("ngrpo", np.ones((P, G)), side).any()


@laws
@given(seeds)
def test_law_7_strata(seed):
    rewards, valid, draw = drawn(seed)
    one = Side(valid=valid, strata=np.zeros((P, G), int))
    some = Side(valid=valid, strata=draw.integers(0, 3, (P, G)))
    grpo = values("grpo", rewards, Side(valid=valid))
    close(values("stratified_grpo", rewards, one, scale_ddof=1), grpo)
    close(values("stratified_grpo", rewards, some, scale_ddof=1, stratum_blend=0.0), grpo)
    # Centred: A_group = A_stratum + (mean of the stratum - mean of the group).
    bare = {"post": "none", "scale": "none"}
    inside = values("stratified_grpo", rewards, some, **bare)
    whole = values("stratified_grpo", rewards, some, base="group_mean", **bare)
    for p in range(P):
        members = [i for i in range(G) if valid[p, i]]
        for i in members:
            fellows = [j for j in members if some.strata[p, j] == some.strata[p, i]]
            shift = rewards[p, fellows].mean() - rewards[p, members].mean()
            close(whole[p, i], inside[p, i] + shift)


@laws
@given(seeds, st.sampled_from(["gdpo", "mo_grpo"]))
def test_law_8_columns(seed, name):
    rewards, valid, draw = drawn(seed, columns=3)
    side = Side(valid=valid)
    single = values("gdpo", rewards[..., :1], side, post="none")
    close(single, values("grpo", rewards[..., 0], side, scale_eps=1e-4))
    stretch, shift = draw.choice([0.5, 2.0, 8.0], 3), draw.integers(-3, 4, 3)
    moved = (rewards * stretch + shift).astype(F)
    before = values(name, rewards, side, scale_eps=0.0)
    close(values(name, moved, side, scale_eps=0.0), before, atol=1e-4)


def test_law_8_the_scalar_sum_is_not_invariant():
    """Ten times the second column, and the completion that has it alone overtakes the other."""
    rewards = np.array([[[1, 0], [0, 0.5], [0, 0]]], F)
    before = values("multi_objective_grpo", rewards)
    after = values("multi_objective_grpo", rewards * np.array([1, 10], F))
    assert before[0, 0] > before[0, 1]
    assert after[0, 0] < after[0, 1]


@laws
@given(seeds, st.sampled_from([0.5, 1.0, 3.0]))
def test_law_9_two_valued_maps(seed, lambda_neg):
    """GRPO with eps / (1 + lambda); without the deviation 1 + lambda times the centred reward."""
    rewards, valid, _ = drawn(seed, choices=(0.0, 1.0))
    side, eps = Side(valid=valid), 0.25
    got = values("weighted_grpo", rewards, side, lambda_neg=lambda_neg, scale_eps=eps)
    close(got, values("grpo", rewards, side, scale_eps=eps / (1 + lambda_neg)))
    centred = values("weighted_grpo", rewards, side, lambda_neg=lambda_neg, scale="none")
    close(centred, (1 + lambda_neg) * values("dr_grpo", rewards, side))


@laws
@given(seeds)
def test_law_10_what_is_turned_off_leaves_grpo(seed):
    rewards, valid, draw = drawn(seed)
    scored = Side(valid=valid, mean_logp=draw.normal(size=(P, G)).astype(F))
    grpo = values("grpo", rewards, Side(valid=valid))
    close(values("xrpo", rewards, scored, novelty_coef=0.0), grpo)
    close(values("unlikeliness", rewards, scored, rank_penalty=0.0), grpo)
    pair = np.stack([rewards, draw.random((P, G)).astype(F)], -1)
    close(values("c_grpo", pair, Side(valid=valid), rubric_reward_ratio=0.0), grpo)
    close(values("masa", rewards, Side(valid=valid)), grpo)
    off = {"dual_init": 0.0, "dual_thresholds": (0.5,)}
    state = init_state(method("fgrpo", **off))
    whitened = values("fgrpo", pair, Side(valid=valid), state, **off)
    close(whitened, values("grpo", rewards, Side(valid=valid), post="batch_zscore", post_eps=1e-6))


def pairs(seed):
    """Log-probs of P groups of G, and labels; empty rows, groups of one outcome."""
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=(P * G, T)).astype(F)
    logp = (old + 0.3 * draw.normal(size=old.shape)).astype(F)
    mask = np.arange(T) < draw.integers(0, T + 1, P * G)[:, None]
    labels = draw.integers(0, 2, (P, G)).astype(F)
    labels[0] = 1
    return logp, old, mask, labels


@functools.partial(jax.jit, static_argnums=0)
def _late(m, logp, old, mask, targets):
    return late_advantages(m, logp, old_logp=old, mask=mask, targets=targets)


@laws
@given(seeds)
def test_law_10_limits_of_the_temperatures(seed):
    data = pairs(seed)
    plain, _ = _late(method("disco", late="disco_b"), *data)
    hot, _ = _late(method("disco", score_tau=1e4), *data)
    close(hot, plain, atol=2e-3)
    even, _ = _late(method("drpo", length_lambda=1e6), *data)
    disco, _ = _late(METHODS["disco"], *data)
    close(even, disco, atol=1e-5)


@laws
@given(seeds)
def test_law_11_regression_measures_the_correlation(seed):
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=(G, T)).astype(F)
    logp = (old + 0.3 * draw.normal(size=old.shape)).astype(F)
    rewards = draw.normal(size=G)
    targets = ((rewards - rewards.mean()) / rewards.std(ddof=1))[None].astype(F)
    m = method("reg_grpo", scale_eps=0.0)
    _, loss = _late(m, logp, old, np.ones((G, T), bool), targets)
    corr = np.corrcoef(rewards, (logp.astype(float) - old).sum(1))[0, 1]
    close(loss, 2 * (G - 1) / G * (1 - corr), atol=1e-5)


@laws
@given(seeds)
def test_law_12_contracted_objective_of_grao_has_the_gradient_of_all_three_terms(seed):
    """One group, its last row the reference; the paper's terms written out over token means."""
    draw = np.random.default_rng(seed)
    rewards = draw.choice([0.0, 0.25, 0.5, 1.0], G).astype(F)
    rewards[:2] = 0.0, 1.0  # they differ, so that the deviation is not 0
    logp = -draw.exponential(size=(G, T)).astype(F)
    mask = np.arange(T) < draw.integers(1, T + 1, G)[:, None]
    m = method("grao")
    side = Side(reference=np.arange(G)[None] == G - 1)
    adv = values("grao", rewards[None], side).reshape(-1)
    own = np.asarray(jax.grad(_grao_loss)(logp, mask, adv))
    sampled = rewards[:-1].astype(float)
    a = (sampled - sampled.mean()) / (sampled.std() + m.scale_eps)
    a_y = (rewards[-1] - sampled.mean()) / (sampled.std() + m.scale_eps)

    def objective(lp):
        mean = jnp.sum(jnp.where(mask, lp, 0.0), axis=1) / mask.sum(1)
        explored = jnp.mean(a * mean[:-1])
        aligned = jnp.mean(a * (mean[:-1] - mean[-1]))
        return explored + m.imitation_coef * a_y * mean[-1] + m.alignment_coef * aligned

    close(a.sum(), 0)
    close(-own, jax.grad(objective)(jnp.asarray(logp)), atol=1e-5)


@jax.jit
def _grao_loss(logp, mask, adv):
    return policy_loss(METHODS["grao"], logp, old_logp=logp, mask=mask, advantages=adv)[0]


@laws
@given(seeds, st.sampled_from([2, 3]))
def test_law_13_prefix_values_telescope(seed, vocabulary):
    """A completion that is alone at its end: the changes of V sum to r - mean."""
    rewards, _, draw = drawn(seed)
    tokens = draw.integers(0, vocabulary, (P, G, T))
    lengths = draw.integers(1, T + 1, (P, G))
    mask = np.arange(T) < lengths[..., None]
    tokens[np.arange(P)[:, None], np.arange(G), lengths - 1] = 10 + np.arange(G)
    side = Side(tokens=tokens, mask=mask)
    centred = rewards.astype(float) - rewards.astype(float).mean(1, keepdims=True)
    got = values("tempo", rewards, side, scale="none").reshape(P, G, T)
    close(got.sum(2) - lengths * centred, centred)
    apart = tokens.copy()
    apart[:, :, 0] = 20 + np.arange(G)
    got = values("tempo", rewards, Side(tokens=apart, mask=mask)).reshape(P, G, T)
    grpo = values("grpo", rewards)[..., None]
    first = np.arange(T) == 0
    close(got, np.where(mask, np.where(first, 2 * grpo, grpo), 0))


@laws
@given(seeds)
def test_law_16_ends_of_the_fused_baseline(seed):
    """A mean within the noise of the prior: the prior; no noise: the mean; else in between."""
    rewards, valid, draw = drawn(seed, choices=(-1.0, 1.0))
    size = np.maximum(valid.sum(1), 1)
    mean = mean_of(rewards.astype(float), valid)
    inside = mean + draw.uniform(-0.99, 0.99, P) / np.sqrt(size)
    own = {"tracker": "none"}
    near = values("v0_5", rewards, Side(prior=inside.astype(F), valid=valid), **own)
    close(near, np.where(valid, rewards - inside[:, None], 0))
    far = (mean + draw.choice([-1, 1], P) * draw.uniform(1.5, 2.0, P)).astype(F)
    sure = values("v0_5", rewards, Side(prior=far, valid=valid), prior_noise=0.0, **own)
    close(sure, np.where(valid, rewards - mean[:, None], 0))
    between = rewards - values("v0_5", rewards, Side(prior=far, valid=valid), **own)
    low, high = np.minimum(mean, far)[:, None] - 1e-5, np.maximum(mean, far)[:, None] + 1e-5
    assert ((between >= low) & (between <= high))[valid].all()


@laws
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4), st.integers(0, 12))
def test_law_16_knapsack_is_concave_so_that_greedy_is_the_optimum(rates, extra):
    p = np.array(rates)
    n = np.arange(2, 20)[:, None]
    value = p * (1 - p) ** 2 * (1 - p**n - (1 - p) ** n)
    gains = np.diff(value, axis=0)
    assert (np.diff(gains, axis=0) <= 1e-12).all()
    m = method("knapsack", rollouts_max=8)
    budget = min(2 * len(p) + extra, 8 * len(p))
    counts = allocation(m, Estimates(success=p), budget)
    table = np.full(budget + 1, -np.inf)
    table[0] = 0.0  # the best value of a budget, by dynamic programming over the prompts
    for k in range(len(p)):
        table = np.array(
            [
                max(
                    (table[b - c] + value[c - 2, k] for c in range(2, 9) if c <= b), default=-np.inf
                )
                for b in range(budget + 1)
            ]
        )
    close(value[counts - 2, np.arange(len(p))].sum(), table[budget], atol=1e-9)


@laws
@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=4), st.integers(0, 12))
def test_law_16_exact_v0_is_never_below_greedy(rates, extra):
    p = np.array(rates)
    budget = min(2 * len(p) + extra, 8 * len(p))
    utility = lambda n: (n * (1 - p) * (1 - (1 - p) ** (n - 1))).sum()  # noqa: E731
    greedy, exact = (
        allocation(method("v0", allocate=rule, rollouts_max=8), Estimates(success=p), budget)
        for rule in ("v0", "v0_exact")
    )
    assert greedy.sum() == exact.sum() == budget
    assert utility(exact) >= utility(greedy) - 1e-9


def test_law_16_the_utility_of_v0_is_not_concave_for_hard_prompts():
    utility = lambda n: n * 0.9 * (1 - 0.9 ** (n - 1))  # noqa: E731
    gains = [utility(n + 1) - utility(n) for n in (2, 8, 16)]
    np.testing.assert_allclose(gains, [0.333, 0.857, 1.030], atol=6e-4)
