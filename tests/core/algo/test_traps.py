"""The traps of objectives.md, each held at the numbers that fall into it and at ours.

Numbers 1, 2 and 3 (floor of the median distance, equal pass rates, a prefix tree of one) are in
test_family.py, number 10 (greedy V0) in test_allocation.py.
"""

import jax
import numpy as np
import oracles
import pytest

from jgrpo.algo import (
    METHODS,
    Side,
    advantages,
    late_advantages,
    method,
    policy_loss,
    token_weights,
)

F = np.float32


def values(m, rewards, side=None):
    return np.asarray(advantages(m, np.asarray(rewards, F), side).values)


def value_and_grad(m, logp, old, adv, mask=None, **further):
    logp, old = np.asarray(logp, F), np.asarray(old, F)
    mask = np.ones(logp.shape, bool) if mask is None else mask
    loss = lambda x: policy_loss(  # noqa: E731
        m, x, old_logp=old, mask=mask, advantages=np.asarray(adv, F), **further
    )[0]
    return jax.value_and_grad(loss)(logp)


def test_trap_4_the_flags_of_the_rubric_leave_it_as_it_is():
    """Right answers with rubric .4 and .8: divided by the best they get .85 and 1, raw .82, .94."""
    rewards = np.array([[[1, 0.4], [1, 0.8], [0, 0.5], [0, 0.2]]], F)
    bare = {"base": "none", "scale": "none"}
    np.testing.assert_allclose(values(method("c_grpo", **bare), rewards), [[0.85, 1, 0, 0]])
    raw = method("c_grpo", shape="rubric_raw", **bare)
    np.testing.assert_allclose(values(raw, rewards), [[0.82, 0.94, 0, 0]], rtol=1e-6)
    assert "rubric_raw" in METHODS["c_grpo"].departs


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "gspo", "bnpo", "stratified_grpo"])
def test_trap_5_a_group_of_one_teaches_nothing(name):
    """Verl keeps r / (1 + eps) there, TRL 0."""
    side = Side(strata=np.zeros((2, 1), int))
    got = values(method(name, penalty="none"), [[0.7], [1.0]], side)
    assert np.array_equal(got, [[0], [0]])


def test_trap_6_the_cap_of_cispo_is_one_plus_clip_high():
    """Ratio e^2 = 7.39: at clip_high 4 (TRL's absolute 5.0) the weight is 5, at 0.2 it is 1.2."""
    for clip_high, cap in ((4.0, 5.0), (0.2, 1.2)):
        m = method("cispo", clip_high=clip_high)
        _, slope = value_and_grad(m, [[-1.0]], [[-3.0]], [1.0])
        np.testing.assert_allclose(slope, [[-cap]], rtol=1e-6)


def test_trap_7_the_value_of_disco_is_its_objective():
    """The code's printed value puts tau x / sg(x), which is tau, for tau log mean exp(s / tau)."""
    old = np.array([[-1, -0.5], [-0.8, -0.6], [-1.5, -1]], F)
    logp = old + np.array([[0.1, -0.05], [-0.05, 0.1], [-0.1, -0.1]], F)
    _, loss = late_advantages(
        METHODS["disco"], logp, old_logp=old, mask=np.ones((3, 2), bool),
        targets=np.array([[1, 0, 0]], F),
    )  # fmt: skip
    score = logp.mean(1)
    objective = score[0] - 10 * np.log(np.mean(np.exp(score[1:] / 10)))
    np.testing.assert_allclose([-loss, objective], [0.281806] * 2, atol=6e-7)
    assert abs(-loss - (score[0] - 10)) > 1


def grao_objective(lp, lengths, lp_y, a, a_y, beta, lam):
    """The paper's three terms for one group, by sums over tokens."""
    own = [x[:n].sum() / n for x, n in zip(lp, lengths, strict=True)]
    own_y = lp_y.sum() / len(lp_y)
    first = np.mean([x * j for x, j in zip(a, own, strict=True)])
    aligned = np.mean([x * (j - own_y) for x, j in zip(a, own, strict=True)])
    return first + beta * a_y * own_y + lam * aligned


def test_trap_8_the_alignment_of_grao_never_reaches_the_reference():
    """Moving the reference's log-probs changes the objective by its own advantage alone."""
    lp, lengths = np.array([[-1, -0.5], [-2, -1], [-0.4, 0]]), [2, 2, 1]
    a, a_y = np.array([1.224745, -1.224745, 0]), 1.224745
    objective = lambda y, lam: grao_objective(lp, lengths, y, a, a_y, 0.5, lam)  # noqa: E731
    near, far = np.array([-1.5, -2.5]), np.array([-0.5, -0.5])
    for lam in (0.0, 0.6, 100.0):
        moved = objective(far, lam) - objective(near, lam)
        np.testing.assert_allclose(moved, 0.5 * a_y * 1.5, rtol=1e-6)
    side = Side(reference=np.array([[False, False, False, True]]))
    plain, strong = (
        values(method("grao", alignment_coef=lam), [[1, 0, 0.5, 1]], side) for lam in (0.0, 3.0)
    )
    np.testing.assert_allclose(strong[0, :3], 4 * plain[0, :3], rtol=1e-6)
    assert strong[0, 3] == plain[0, 3]


def test_trap_9_weighted_outcomes_do_nothing_under_a_z_score():
    grpo = values(method("grpo", scale_eps=0.0), oracles.FB)
    for lambda_neg in (0.5, 1.0, 7.0):
        m = method("weighted_grpo", lambda_neg=lambda_neg, scale_eps=0.0)
        np.testing.assert_allclose(values(m, oracles.FB), grpo, rtol=1e-6)
        batch = method("weighted_grpo", lambda_neg=lambda_neg, base="batch_mean", scale="none")
        spread = np.ptp(values(batch, oracles.FB))
        np.testing.assert_allclose(spread, 1 + lambda_neg, rtol=1e-6)


def test_trap_11_empty_rows_count_in_one_mean_over_sequences_and_not_in_the_other():
    """Losses 1, 2, 3 | 4 | nothing: verl's mean of rows is 3, TRL's 2."""
    losses = np.array([[1, 2, 3], [4, 0, 0], [0, 0, 0]])
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    for weights, expected in (("sequence_mean", 3.0), ("sequence_mean_all", 2.0)):
        got = np.sum(np.asarray(token_weights(method("grpo", weights=weights), mask)) * losses)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_trap_12_what_verl_calls_gspo_differs_where_advantages_differ_in_a_row():
    """Advantages 1 and 0: the mean gives both tokens half, the token form all to the first."""
    old = np.full((1, 2), -1.0, F)
    per_token = np.array([[1.0, 0.0]])
    _, ours = value_and_grad(METHODS["gspo"], old, old, per_token)
    _, verl = value_and_grad(METHODS["gspo_token"], old, old, per_token)
    np.testing.assert_allclose(ours, [[-0.25, -0.25]], rtol=1e-6)
    np.testing.assert_allclose(verl, [[-0.5, 0]], rtol=1e-6)


def test_trap_13_no_dual_clip_unless_it_is_asked_for():
    """Ratio 4.4817 and A = -1: verl's vanilla loss stops at 3."""
    plain = method("grpo", penalty="none")
    loss, slope = value_and_grad(plain, [[-0.5]], [[-2.0]], [-1.0])
    np.testing.assert_allclose([loss, slope[0, 0]], [4.481689, 4.481689], rtol=1e-6)
    loss, slope = value_and_grad(
        method("grpo", penalty="none", dual_clip=3.0), [[-0.5]], [[-2.0]], [-1.0]
    )
    np.testing.assert_allclose([loss, slope[0, 0]], [3, 0], rtol=1e-6)
    assert (
        METHODS["grpo"].dual_clip == METHODS["gspo"].dual_clip == METHODS["dr_grpo"].dual_clip == 0
    )


def test_trap_14_ties_go_by_the_row():
    """Equal log-probs rank in their order; of four the lower median, whose first row goes."""
    tied = Side(mean_logp=np.full((1, 4), -0.5, F))
    bare = {"base": "none", "scale": "none"}
    ranked = values(method("unlikeliness", **bare), [[1, 1, 1, 1]], tied)
    np.testing.assert_allclose(ranked, [[1, 0.9375, 0.875, 0.8125]])
    found = advantages(METHODS["mc_grpo"], np.array([[3, 1, 1, 2], [0, 1, 1, 1]], F))
    assert found.keep.tolist() == [[True, False, True, True], [True, False, True, True]]
    np.testing.assert_allclose(found.values[0], np.array([2, 0, 0, 1]) / 0.001 / 1, rtol=1e-6)
