"""Advantages of single methods: worked examples of objectives.md, loops on random groups, laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_family as loops
import pytest

from jgrpo.algo import METHODS, Side, advantages, init_state, method, needs
from jgrpo.algo.trackers import BetaTracker, Multipliers

DIGITS = 6e-7
F = np.float32


def values(name, rewards, side=None, state=None, **overrides):
    found = advantages(method(name, **overrides), np.asarray(rewards, F), side, state)
    return np.asarray(found.values)


@functools.partial(jax.jit, static_argnums=0)
def compiled(m, rewards, side):
    """Compiled whole: for a shape that occurs once this is faster than operation by operation."""
    return advantages(m, rewards, side).values


def groups(seed=0, choices=(0.0, 0.25, 0.5, 1.0)):
    """Five random groups of six with ties; the first is all 1, the second 0 and 1 by turns."""
    rewards = np.random.default_rng(seed).choice(choices, size=(5, 6))
    rewards[0], rewards[1] = 1.0, np.arange(6) % 2
    return rewards.astype(F)


TEMPO_SIDE = Side(
    tokens=np.array([[[5, 7, 2], [5, 8, 2], [6, 2, 0]]]),
    mask=np.array([[[1, 1, 1], [1, 1, 1], [1, 1, 0]]], bool),
)
LENGTHS_32_12 = np.arange(3) < np.array([[3, 2], [1, 2]])[..., None]
SAN = {"strata": np.array([[0, 0, 1, 1, 1, 2]])}
EXAMPLES = {
    "B1 overlong": ("dapo", [[1, 1, -1, 1]], Side(lengths=np.array([[16000, 18432, 20480, 21000]]),
                    max_completion_tokens=20480), {"base": "none", "scale": "none"},
                    [[1, 0.5, -2, 0]]),
    "B2": ("unlikeliness", [[1, 1, 0, 1]], Side(mean_logp=np.array([[-0.9, -0.2, -0.5, -0.4]], F)),
           {}, [[0.721709, 0.309304, -1.477785, 0.446772]]),
    "B3": ("tempsamp_r1", [[0.2, 0.5, 0.9, 1]], None, {},
           [[-1.357109, -0.148571, 0.750927, 0.754753]]),
    "B3 anchor": ("tempsamp_r1", [[0.2, 0.5, 0.9, 1]],
                  Side(reference=np.array([[False, False, False, True]])),
                  {"shape": "none", "base": "sampled_mean", "scale": "sampled_std",
                   "post": "anchor"}, [[-0.948888, -0.094889, 1.043777, 1.252532]]),
    "B4": ("c_grpo", [[[1, 0.4], [1, 0.8], [0, 0.5], [0, 0.2]]], None, {},
           [[0.720864, 0.999908, -0.860386, -0.860386]]),
    "B4 code": ("c_grpo", [[[1, 0.4], [1, 0.8], [0, 0.5], [0, 0.2]]], None,
                {"shape": "rubric_raw"}, [[0.744477, 0.979575, -0.862026, -0.862026]]),
    "B7": ("weighted_grpo", oracles.FB, None, {"lambda_neg": 2.0},
           [[1.499999, -0.5, -0.5, -0.5], [0.5, 0.5, 0.5, -1.499999]]),
    "B7 centred": ("weighted_grpo", oracles.FB, None, {"lambda_neg": 2.0, "scale": "none"},
                   [[2.25, -0.75, -0.75, -0.75], [0.75, 0.75, 0.75, -2.25]]),
    "B8 scalar": ("multi_objective_grpo", [[[1, 10], [0, 20], [1, 30], [0, 40]]], None, {},
                  [[-1.145133, -0.434361, 0.434361, 1.145133]]),
    "B8": ("mo_grpo", [[[1, 10], [0, 20], [1, 30], [0, 40]]], None, {},
           [[-0.295871, -1.253322, 1.253322, 0.295871]]),
    "C3": ("rloo", oracles.FB, None, {"penalty": "none"},
           [[1, -0.333333, -0.333333, -0.333333], [0.333333, 0.333333, 0.333333, -1]]),
    "C4 baseline": ("reinforce_pp_baseline", [[1, 0], [1, 1]], Side(mask=LENGTHS_32_12), {},
                    [[1.048503] * 3, [-1.348076] * 2 + [0], [-0.149786, 0, 0],
                     [-0.149786, -0.149786, 0]]),
    "C5": ("grpo", [[1, 0, 0]], Side(lengths=np.array([[2, 4, 4]])),
           {"base": "length_weighted", "scale": "none"}, [[0.8, -0.2, -0.2]]),
    "C7": ("bnpo", [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], None, {},
           [[0.680175, -0.226725, -0.226725, -0.226725], [0.392699, 0.392699, -0.392699, -0.392699],
            [0.226725, 0.226725, 0.226725, -0.680175]]),
    "C7 columns": ("bnpo", np.stack([[[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]],
                                     [[1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]], -1), None, {},
                   [[0.453450, 0, 0, -0.453450], [0.392699, 0, 0, -0.392699],
                    [0.453450, 0, 0, -0.453450]]),
    "C8": ("mc_grpo", [[0.2, 1, 0.5]], None, {}, [[-0.996678, 1.661130, 0]]),
    "C8 rescaled": ("mc_grpo", [[0.2, 1, 0.5]], None, {"post": "drop_pivot_rescaled"},
                    [[-1.495017, 2.491694, 0]]),
    "C9": ("ngrpo", [[0, 0, 0, 0], [1, 0, 0, 0]], None, {},
           [[-0.447213] * 4, [1.095443, -0.730295, -0.730295, -0.730295]]),
    "C11": ("v0_5", [[1, 1, -1, 1]], Side(prior=np.array([-0.4], F)), {"tracker": "none"},
            [[0.777778, 0.777778, -1.222222, 0.777778]]),
    "C12": ("stratified_grpo", [[1, 0, 1, 0, 0, 0.5]], Side(**SAN), {},
            [[1.149931, -0.964236, 1.357038, -0.817790, -0.817790, 0.092847]]),
    "C13": ("gdpo", [[[0, 0], [1, 0], [0, 1], [1, 1]], [[0, 0], [0, 1], [0, 1], [1, 1]]], None, {},
            [[-1.224677, 0, 0, 1.224677], [-1.414097, 0, 0, 1.414097]]),
    "C12 inside": ("stratified_grpo", [[1, 0, 1, 0, 0, 0.5]], Side(**SAN), {"stratum_blend": 1.0},
                   [[0.999998, -0.999998, 1.414211, -0.707105, -0.707105, 0]]),
    "C12 whole": ("stratified_grpo", [[1, 0, 1, 0, 0, 0.5]], Side(**SAN), {"stratum_blend": 0.0},
                  [[1.299864, -0.928475, 1.299864, -0.928475, -0.928475, 0.185695]]),
    "C13 sum": ("gdpo", [[[0, 0], [1, 0], [0, 1], [1, 1]], [[0, 0], [0, 1], [0, 1], [1, 1]]], None,
                {"post": "none"}, [[-1.731751, 0, 0, 1.731751], [-1.9996, 0, 0, 1.9996]]),
    "C13 tokens": ("gdpo", [[[0, 0], [1, 0], [0, 1], [1, 1]]],
                   Side(mask=np.arange(3) < np.array([[1, 2, 3, 2]])[..., None]),
                   {"post": "token_whiten", "scale_eps": 1e-6, "post_eps": 1e-8},
                   [[-1.755426, 0, 0], [-0.195047, -0.195047, 0], [-0.195047] * 3,
                    [1.365332, 1.365332, 0]]),
    "C15": ("tempo", [[1, 0, 0]], TEMPO_SIDE, {},
            [[1.443373, 2.020722, 1.154699], [-0.288675, -1.443373, -0.577349],
             [-1.154699, -0.577349, 0]]),
    "C16": ("xrpo", [[1, 1, 0, 0]], Side(mean_logp=np.array([[-0.2, -0.8, -0.4, -0.6]], F)), {},
            [[0.866024, 1.299036, -0.866024, -0.866024]]),
}  # fmt: skip


@pytest.mark.parametrize("case", EXAMPLES)
def test_worked_example(case):
    name, rewards, side, overrides, expected = EXAMPLES[case]
    got = compiled(method(name, **overrides), np.asarray(rewards, F), side)
    np.testing.assert_allclose(got, expected, atol=1.2e-6)


def test_median_row_is_not_trained():
    """C8: the third of three; with equal medians the first, whose advantage is 0 as well."""
    found = advantages(METHODS["mc_grpo"], np.array([[0.2, 1, 0.5], [1, 1, 0]], F))
    assert found.keep.tolist() == [[True, True, False], [False, True, True]]


def test_trap_1_median_distance_of_two_valued_rewards_is_the_floor_alone():
    np.testing.assert_allclose(values("mc_grpo", [[1, 1, 0]]), [[0, 0, -1000]], rtol=1e-6)
    np.testing.assert_allclose(values("mc_grpo", [[1, 1, 0]], scale_eps=0.5), [[0, 0, -2]])


def test_trap_2_equal_pass_rates_divide_by_nothing():
    rewards = np.array([[1, 0], [0, 1]], F)
    np.testing.assert_allclose(values("bnpo", rewards), rewards - 0.5, atol=DIGITS)


def test_trap_3_prefix_values_of_a_group_of_one_are_zero():
    side = Side(tokens=np.ones((1, 1, 3), int), mask=np.ones((1, 1, 3), bool))
    assert np.array_equal(values("tempo", [[1.0]], side), np.zeros((1, 3)))


def test_returns_hold_the_penalty_of_every_token():
    """C4: rewards [-0.1, 0, 1] and [0, -0.2] of the tokens, penalties included."""
    mask = np.array([[[1, 1, 1]], [[1, 1, 0]]], bool)
    kl = np.array([[[10, 0, 0]], [[0, 20, 5]]], F)
    got = values("reinforce_pp", [[1.0], [0.0]], Side(mask=mask, token_kl=kl), kl_coef=0.01)
    expected = [[0.624695, 0.780869, 0.780869], [-1.093216, -1.093216, 0]]
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_critic_advantages_agree_with_the_loop():
    draw = np.random.default_rng(0)
    critic = draw.normal(size=(3, 1, 4)).astype(F)
    mask = np.arange(4) < np.array([4, 2, 1])[:, None, None]
    rewards = np.array([[1.0], [0.0], [0.5]], F)
    kl = draw.normal(size=mask.shape).astype(F)
    m = method("ppo_clip", gamma=0.9, gae_lambda=0.8, kl_coef=0.1)
    got = advantages(m, rewards, Side(mask=mask, values=critic, token_kl=kl)).values
    raw = np.zeros((3, 4))
    for i, n in enumerate([4, 2, 1]):
        each = -0.1 * kl[i, 0, :n].astype(np.float64)
        each[-1] += rewards[i, 0]
        raw[i, :n] = loops.gae(each, critic[i, 0, :n], 0.9, 0.8)
    np.testing.assert_allclose(got, loops.whiten(raw, mask[:, 0]), atol=1e-5)


def test_tracker_is_the_baseline_and_then_learns():
    """C10: values 0.5, 0.25, 0.75; a drift of 0.008 from (4, 4) leaves rho = 0.911722."""
    state = BetaTracker(alpha=jnp.array([9.0, 4, 1, 3]), beta=jnp.array([9.0, 4, 3, 1]))
    side = Side(prompt_ids=np.array([1, 2, 3]), drift=np.array([0.008, 0, 0], F))
    found = advantages(METHODS["spo"], np.array([[1], [0], [1]], F), side, state)
    np.testing.assert_allclose(found.values[:, 0], [0.872872, -1.091089, 0.218218], atol=DIGITS)
    np.testing.assert_allclose(found.state.alpha[:2], [9, 4.646890], atol=2e-6)
    np.testing.assert_allclose(found.state.beta[:2], [9, 3.646890], atol=2e-6)
    np.testing.assert_allclose(found.state.alpha[2], 0.96, atol=2e-6)


def test_tracker_starts_from_offline_outcomes():
    state = init_state(METHODS["spo"], outcomes=np.array([[1, 0, 1, 1, 0, 1, 1, 0]], F))
    np.testing.assert_allclose([state.alpha[0], state.beta[0]], [4.888889, 3.111111], atol=2e-6)


def test_multipliers_rise_while_a_constraint_is_missed():
    """C14; with fewer applicable completions than asked for the multiplier rests."""
    rewards = np.array([[[1, 1], [0, 1], [0.5, 0], [0, 0]]], F)
    m = method("fgrpo", dual_thresholds=(0.95,), dual_min_samples=1)
    found = advantages(m, rewards, state=init_state(m))
    expected = [[1.345991, 0.051244, -0.374931, -1.022304]]
    np.testing.assert_allclose(found.values, expected, atol=2e-6)
    np.testing.assert_allclose(found.state.values, [1.0225], atol=DIGITS)
    few = Side(applicable=np.array([[[True], [False], [False], [False]]]))
    rests = advantages(dataclasses.replace(m, dual_min_samples=2), rewards, few, init_state(m))
    assert rests.state.values.tolist() == [1.0]


def test_success_rates_are_remembered_by_prompt():
    m = METHODS["knapsack"]
    side = Side(prompt_ids=np.array([2, 0]), valid=np.array([[True, True], [False, False]]))
    state = advantages(m, np.array([[1, 0], [1, 1]], F), side, init_state(m, num_prompts=3)).state
    assert state.rate.tolist() == [0, 0, 0.5]
    assert state.seen.tolist() == [False, False, True]


def test_item_advantages_reach_the_tokens_of_their_item():
    """C17 with hits as rewards; token of no item, and beyond the last item, get 0."""
    rewards = np.array([[[1, 0], [0, 0], [0, 1]]], F)
    segments = np.array([[[0, 0, 1], [0, 1, -1], [1, 2, 0]]])
    side = Side(mask=np.ones((1, 3, 3), bool), segments=segments)
    got = values("rank_grpo", rewards, side, shape="none")
    up, down = 1.154501, -0.577250
    np.testing.assert_allclose(got, [[up, up, down], [down, down, 0], [up, 0, down]], atol=DIGITS)


def test_hits_become_suffix_gains():
    """B6: hits 0, 1, 0, 1."""
    raw = {"base": "none", "scale": "none", "scale_eps": 0.0}
    side = Side(mask=np.ones((1, 1, 4), bool), segments=np.arange(4)[None, None])
    got = values("rank_grpo", [[[0, 1, 0, 1]]], side, **raw)
    np.testing.assert_allclose(got, [[1.061606, 1.061606, 0.430677, 0.430677]], atol=DIGITS)


def test_reference_answer_is_imitated_and_samples_explored():
    """G4: the gradient of the whole, with sequence_mean weights over the four rows."""
    side = Side(reference=np.array([[False, False, False, True]]))
    got = values("grao", [[1, 0, 0.5, 1]], side)
    # Row gradients .326599, -.326599, 0 and .306186 a token are A / (4 n), n = 2, 2, 1, 2.
    expected = np.array([[0.326599 * 8, -0.326599 * 8, 0, 0.306186 * 8]])
    np.testing.assert_allclose(got, expected, atol=6e-6)
    tied = values("grao", [[1, 1, 1, 2]], side)
    np.testing.assert_allclose(tied, [[0, 0, 0, 0.5 * 10 * 4]])


def test_law_12_sum_of_sampled_advantages_is_zero():
    side = Side(reference=np.arange(6)[None] * np.ones((5, 1), int) == 5)
    got = values("grao", groups(), side)
    np.testing.assert_allclose(got[:, :5].sum(1), 0, atol=1e-5)


LENGTHS = np.random.default_rng(3).integers(1, 5, (5, 6))
MASK = np.arange(4) < LENGTHS[..., None]
MEAN_LOGP = np.round(np.random.default_rng(4).normal(size=(5, 6)), 1).astype(F)
TOKENS = np.random.default_rng(5).integers(0, 2, (5, 6, 4))
STRATA = np.random.default_rng(6).integers(0, 3, (5, 6))
PRIOR = np.random.default_rng(7).normal(size=5).astype(F)
COLUMNS = np.stack([groups(8), groups(9), groups(10)], -1)


def shaped(function, rewards):
    return np.stack([loops.zscore(function(i, r)) for i, r in enumerate(rewards.astype(float))])


def test_group_rows_agree_with_the_loops():
    r, binary = groups(1), groups(2, choices=(0.0, 1.0))
    rare = lambda i, x: x * (1 - 0.25 * loops.ranks(MEAN_LOGP[i]) / 6)  # noqa: E731
    mixed = loops.columns(COLUMNS, 1e-4).sum(2)
    cases = {
        "mc_grpo": (r, None, np.where(advantages(METHODS["mc_grpo"], r).keep,
                                      loops.mc_grpo(r)[0], 0)),
        "ngrpo": (binary, None, loops.ngrpo(binary)),
        "bnpo": (r, None, loops.bnpo(r.astype(float))),
        "stratified_grpo": (r, Side(strata=STRATA), loops.stratified(r, STRATA)),
        "unlikeliness": (binary, Side(mean_logp=MEAN_LOGP), shaped(rare, binary)),
        "tempsamp_r1": (r, None, np.stack([loops.zscore([loops.squash(x) for x in g], 1e-4)
                                           for g in r.astype(float)])),
        "xrpo": (binary, Side(mean_logp=MEAN_LOGP), loops.novelty(binary, MEAN_LOGP)),
        "mo_grpo": (COLUMNS, None, loops.columns(COLUMNS, 1e-6).sum(2)),
        "gdpo": (COLUMNS, None, loops.batch_zscore(mixed, 1e-4)),
        "multi_objective_grpo": (COLUMNS, None, shaped(lambda _, g: g.sum(1), COLUMNS)),
        "masa": (COLUMNS, None, shaped(lambda _, g: g.mean(1), COLUMNS)),
        "weighted_grpo": (binary, None, shaped(lambda _, g: np.where(g > 0, 1.0, -1.0), binary)),
        "tempo": (r, Side(tokens=TOKENS, mask=MASK),
                  loops.tempo(r.astype(float), TOKENS, MASK).reshape(30, 4)),
        "reinforce_pp_baseline": (
            r, Side(mask=MASK), loops.whiten(
                np.where(MASK, (r - r.astype(float).mean(1, keepdims=True))[..., None], 0)
                .reshape(30, 4), MASK.reshape(30, 4))),
    }  # fmt: skip
    for name, (rewards, side, expected) in cases.items():
        got = values(name, rewards, side)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5, err_msg=name)
    got = values("v0_5", r, Side(prior=PRIOR), tracker="none")
    np.testing.assert_allclose(got, loops.v0_5(r.astype(float), PRIOR), rtol=2e-5, atol=2e-5)


def test_batch_statistics_agree_with_the_loops():
    r = groups(1)
    got = values("grpo", r, base="batch_mean", scale="batch_std")
    np.testing.assert_allclose(got, loops.batch_zscore(r, 1e-6), atol=1e-5)


def test_law_5_beta_density_of_equal_moments_is_a_multiple_of_grpo():
    """Pass rates 1/4, 1/2, 3/4 fit alpha = beta = 3/2: pi / 8 times the population z-score."""
    r = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    grpo = values("grpo", r, scale_ddof=0, scale_eps=0.0)
    np.testing.assert_allclose(values("bnpo", r), np.pi / 8 * grpo, rtol=1e-5)


def test_laws_6_7_8_and_10_reduce_to_grpo():
    r = groups(1)
    grpo = values("grpo", r)
    one = Side(strata=np.zeros((5, 6), int))
    likely = Side(mean_logp=MEAN_LOGP)
    same = {
        "virtual": values("ngrpo", r, add_max_reward_num=0),
        "one stratum": values("stratified_grpo", r, one, scale_ddof=1),
        "no blend": values("stratified_grpo", r, Side(strata=STRATA), stratum_blend=0.0,
                           scale_ddof=1),
        "one column": values("mo_grpo", r[..., None]),
        "no novelty": values("xrpo", r, likely, novelty_coef=0.0),
        "no rank penalty": values("unlikeliness", r, likely, rank_penalty=0.0),
        "outcome alone": values("c_grpo", np.stack([r, groups(3)], -1), rubric_reward_ratio=0.0),
    }  # fmt: skip
    for name, got in same.items():
        np.testing.assert_allclose(got, grpo, atol=2e-6, err_msg=name)


def test_law_6_groups_of_one_outcome_under_a_virtual_completion():
    for size in (1, 2, 7):
        np.testing.assert_allclose(
            values("ngrpo", np.zeros((1, size))), -np.ones((1, size)) / np.sqrt(size + 1), atol=2e-6
        )
        assert not values("ngrpo", np.ones((1, size))).any()


def test_law_8_each_column_may_be_moved_and_stretched():
    moved = COLUMNS * np.array([2.0, 0.5, 8.0], F) + np.array([1.0, -3.0, 0.0], F)
    for name in ("gdpo", "mo_grpo"):
        before = values(name, COLUMNS, scale_eps=0.0)
        np.testing.assert_allclose(values(name, moved, scale_eps=0.0), before, atol=1e-5)


def test_law_9_two_valued_maps_are_undone_by_group_deviations_but_not_by_the_batchs():
    binary = groups(2, choices=(0.0, 1.0))
    none = {"scale_eps": 0.0, "lambda_neg": 3.0}
    grpo = values("grpo", binary, scale_eps=0.0)
    np.testing.assert_allclose(values("weighted_grpo", binary, **none), grpo, atol=1e-5)
    centred = values("weighted_grpo", binary, scale="none", lambda_neg=3.0)
    np.testing.assert_allclose(centred, 4 * values("dr_grpo", binary), atol=1e-5)


def test_law_13_prefix_values_telescope_to_the_own_reward():
    """With a last token of its own, every completion ends alone: the changes sum to r - mean."""
    tokens = TOKENS.copy()
    tokens[:, :, 3] = 10 + np.arange(6)
    whole = np.ones(tokens.shape, bool)
    r = groups(1)
    got = values("tempo", r, Side(tokens=tokens, mask=whole), scale="none").reshape(5, 6, 4)
    centred = r - r.mean(1, keepdims=True)
    np.testing.assert_allclose(got.sum(2), 5 * centred, atol=1e-5)


def test_law_16_prior_and_mean_are_the_two_ends_of_the_baseline():
    r = np.array([[1, -1, 1, 1]], F)
    near = values("v0_5", r, Side(prior=np.array([0.4], F)), tracker="none")
    np.testing.assert_allclose(near, r - 0.4, atol=1e-6)
    known = {"prior_noise": 0.0, "tracker": "none"}
    sure = values("v0_5", r, Side(prior=np.array([-0.9], F)), **known)
    np.testing.assert_allclose(sure, r - 0.5, atol=1e-6)
    alone = values("v0_5", r, Side(prior=np.array([np.nan], F)), tracker="none")
    np.testing.assert_allclose(alone, r - 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "overrides", "rewards", "state", "word"),
    [
        ("gdpo", {}, np.zeros((1, 2, 2), F), None, None),
        ("grpo", {"penalty": "none"}, np.zeros((1, 2, 2), F), None, "for one reward, got 2 col"),
        ("dapo", {}, np.zeros((1, 2, 2), F), None, "one reward per completion"),
        ("rloo", {}, np.zeros((1, 2, 2), F), None, "kl_in 'reward' is for one reward"),
        ("gdpo", {"post": "drop_pivot"}, np.zeros((1, 2, 2), F), None, "'drop_pivot' is for one"),
        ("gdpo", {"post": "prefix_td"}, np.zeros((1, 2, 2), F), None, "got 2 columns"),
        ("c_grpo", {}, np.zeros((1, 2), F), None, "takes reward columns"),
        ("c_grpo", {}, np.zeros((1, 2, 3), F), None, "2 reward columns"),
        ("fgrpo", {}, np.zeros((1, 2, 4), F), None, "algo.init_state"),
        ("fgrpo", {}, np.zeros((1, 2, 3), F), Multipliers(values=np.ones(3, F)), "per reward col"),
        ("spo", {}, np.zeros((1, 1), F), {}, "keeps state"),
        ("gdpo", {"reward_weights": (1.0, 2.0, 3.0)}, np.zeros((1, 2, 2), F), None, "3 numbers"),
    ],
)
def test_wrong_columns_and_states_are_refused(name, overrides, rewards, state, word):
    side = Side(prompt_ids=np.array([0]), drift=np.zeros(1, F))
    if word is None:
        assert advantages(METHODS[name], rewards, side).values.shape == (1, 2)
        return
    with pytest.raises(ValueError, match=word):
        advantages(method(name, **overrides), rewards, side, state)


@pytest.mark.parametrize("name", METHODS)
def test_every_row_ignores_invalid_completions(name):
    """A seventh row that does not count, with a reward of nan, changes no advantage."""
    m = dataclasses.replace(METHODS[name], overlong_buffer_tokens=2)
    two = ("c_grpo", "format_length", "train_long_think_short", "autorule", "m_grpo")
    columns = ({"fgrpo": 4} | dict.fromkeys(two, 2)).get(name, 3 if "columns" in needs(m) else 0)
    r = groups(1, choices=(0.0, 1.0))
    if columns:
        r = np.stack([groups(k, choices=(0.0, 1.0)) for k in range(columns)], -1)
    bad = np.concatenate([r, np.full_like(r[:, :1], np.nan)], axis=1)
    valid = np.arange(7) * np.ones((5, 1)) < 6
    # The solution stands in the middle, so that it is not the row that does not count.
    reference = np.arange(6) * np.ones((5, 1)) == 2
    of_rows = {"lengths": LENGTHS, "mean_logp": MEAN_LOGP, "strata": STRATA, "mask": MASK,
               "tokens": TOKENS, "reference": reference, "sequence_kl": MEAN_LOGP,
               "token_kl": TOKENS.astype(F), "values": TOKENS.astype(F),
               "segments": TOKENS, "prefix_scores": TOKENS.astype(F),
               "answer_logp": MEAN_LOGP,
               "truncated": reference, "repeats": reference, "skilled": reference,
               "non_incorrect": ~reference, "chance": TOKENS[..., 0].astype(F)}  # fmt: skip
    rest = {"prior": PRIOR, "max_completion_tokens": 4, "prompt_ids": np.arange(5),
            "drift": np.zeros(5, F), "step": np.array(7)}  # fmt: skip
    state = init_state(m, num_prompts=5) if m.tracker != "none" else None
    add = lambda x: np.concatenate([x, x[:, :1]], axis=1)  # noqa: E731
    alone = np.asarray(advantages(m, r, Side(**of_rows, **rest), state).values)
    wide = {field: add(x) for field, x in of_rows.items()}
    found = advantages(m, bad, Side(**wide, **rest, valid=valid), state)
    got = np.asarray(found.values)
    if got.shape == (35, 4):
        alone, got = alone.reshape(5, 6, 4), got.reshape(5, 7, 4)
    assert not got[:, 6].any()
    assert not np.asarray(found.keep)[:, 6].any()
    np.testing.assert_allclose(got[:, :6], alone, rtol=1e-5, atol=1e-5)
