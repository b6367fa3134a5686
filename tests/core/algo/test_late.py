"""Losses that couple a group: worked examples G1, G2, G3, and microbatches."""

import functools

import jax
import numpy as np
import oracles_family as loops
import pytest

from jgrpo.algo import (
    METHODS,
    constraint_scale,
    coupled_advantages,
    late_advantages,
    method,
    policy_loss,
    token_weights,
    uncoupled,
)

F = np.float32
OLD = np.array([[-1, -0.5], [-0.8, -0.6], [-1.5, -1]], F)
D = np.array([[0.1, -0.05], [-0.05, 0.1], [-0.1, -0.1]], F)
LOGP = OLD + D
FULL = np.ones((3, 2), bool)


@functools.partial(jax.jit, static_argnums=0)
def gradient(m, logp, old, mask, targets):
    """Gradient of the loss by logp: one pass for the advantages, one for the gradient."""
    values, loss = late_advantages(m, logp, old_logp=old, mask=mask, targets=targets)
    scale = constraint_scale(m, logp, old_logp=old, mask=mask)
    slope = jax.grad(
        lambda x: policy_loss(
            m, x, old_logp=old, mask=mask, advantages=values, constraint_scale=scale,
            ref_logp=old,
        )[0]
    )(logp)  # fmt: skip
    return slope, loss


@pytest.mark.parametrize("name", ["disco", "drpo", "reg_grpo"])
def test_uncoupled_method_with_coupled_advantages_has_the_same_gradient(name):
    """The constraint too: its threshold is below the drift here."""
    m = method(name, **({} if name == "reg_grpo" else {"constraint_delta": 0.0}))
    targets, weights = np.array([[1, 0, 0]], F), np.asarray(token_weights(m, FULL))
    expected, _ = gradient(m, LOGP, OLD, FULL, targets)
    values = coupled_advantages(
        m, LOGP, old_logp=OLD, mask=FULL, advantages=targets, weights=weights
    )
    loss = lambda x: policy_loss(  # noqa: E731
        uncoupled(m), x, old_logp=OLD, mask=FULL, advantages=values, weights=weights, ref_logp=OLD
    )[0]
    np.testing.assert_allclose(jax.grad(loss)(LOGP), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize(
    ("late", "tau", "value"),
    [("disco_b", 10.0, 0.287500), ("disco", 10.0, 0.281806), ("disco_ratio", 1.0, 0.059780)],
)
def test_discriminative_objective_of_the_worked_example(late, tau, value):
    m = method("disco", late=late, score_tau=tau)
    _, loss = late_advantages(m, LOGP, old_logp=OLD, mask=FULL, targets=np.array([[1, 0, 0]], F))
    np.testing.assert_allclose(-loss, value, atol=6e-7)


def test_gradient_of_the_worked_example_with_its_penalty():
    slope, _ = gradient(METHODS["disco"], LOGP, OLD, FULL, np.array([[1, 0, 0]], F))
    expected = np.array([[-3.261111], [-2.502677], [-2.519545]]) * np.ones((1, 2))
    np.testing.assert_allclose(slope, expected, atol=3e-5)


def test_short_right_completions_weigh_more():
    """G2: n = 2, 1, 2 with limit 2."""
    mask = np.array([[1, 1], [1, 0], [1, 1]], bool)
    m = method("drpo", length_limit_tokens=2)
    slope, loss = gradient(m, LOGP, OLD, mask, np.array([[1, 1, 0]], F))
    np.testing.assert_allclose(-loss, 0.500837, atol=2e-6)
    expected = [[-7.983346, -7.983346], [-8.973307, 0], [-7.48, -7.48]]
    np.testing.assert_allclose(slope, expected, atol=3e-5)


def test_regression_of_the_worked_example():
    """G3: sequence log-ratios 0.1, -0.15, -0.05."""
    old = np.full((3, 2), -1.0, F)
    logp = old + np.array([[0.05, 0.05], [-0.1, -0.05], [-0.05, 0.0]], F)
    targets = np.array([[1.154699, -0.577349, -0.577349]], F)
    slope, loss = gradient(METHODS["reg_grpo"], logp, old, FULL, targets)
    np.testing.assert_allclose(loss, 0.109782, atol=1e-6)
    expected = np.array([[-0.965948], [-1.448931], [2.414879]]) * np.ones((1, 2))
    np.testing.assert_allclose(slope, expected, rtol=2e-4)


def test_first_regression_of_a_step_is_centred_only():
    """All log-ratios 0: residual A, derivative -2 A / 3 through the centring, which A survives."""
    targets = np.array([[1.0, -0.5, -0.5]], F)
    slope, loss = gradient(METHODS["reg_grpo"], OLD, OLD, FULL, targets)
    np.testing.assert_allclose(loss, 0.5, atol=1e-6)
    np.testing.assert_allclose(slope, -2 / 3 * targets.T * np.ones((1, 2)), atol=1e-6)


def test_law_11_regression_measures_the_correlation():
    """2 (G - 1) / G (1 - corr), here for one group of three."""
    rho = D.sum(1)
    targets = loops.zscore([1.0, 0.0, 0.3], eps=0.0)
    m = method("reg_grpo", scale_eps=0.0)
    _, loss = late_advantages(m, LOGP, old_logp=OLD, mask=FULL, targets=targets[None].astype(F))
    corr = np.corrcoef(targets, rho)[0, 1]
    np.testing.assert_allclose(loss, 2 * 2 / 3 * (1 - corr), rtol=1e-4)


def test_groups_of_one_outcome_and_other_rewards_add_nothing():
    for name in ("disco", "drpo"):
        for labels in ([[1, 1, 1]], [[0, 0, 0]], [[0.5, 1, 1]]):
            m = method(name, constraint="none")
            slope, loss = gradient(m, LOGP, OLD, FULL, np.array(labels, F))
            assert loss == 0, (name, labels)
            assert not slope.any(), (name, labels)
    slope, loss = gradient(METHODS["reg_grpo"], LOGP, OLD, FULL, np.zeros((1, 3), F))
    assert loss == 0
    assert not slope.any()


def test_scores_agree_with_the_loop_whatever_the_weights():
    draw = np.random.default_rng(0)
    logp = -draw.exponential(size=(12, 4)).astype(F)
    mask = np.arange(4) < draw.integers(1, 5, 12)[:, None]
    labels = draw.integers(0, 2, (3, 4)).astype(F)
    labels[0] = 1
    number = mask.sum(1)
    score = (np.where(mask, logp, 0).sum(1) / number).reshape(3, 4)
    objective, by_score = loops.disco(labels, score, 2.0)
    expected = -np.where(mask, (by_score.reshape(12) / number)[:, None], 0)
    for weights in ("token_mean", "sequence_mean", "constant_length"):
        m = method("disco", score_tau=2.0, constraint="none", weights=weights,
                   constant_length_tokens=9)  # fmt: skip
        slope, loss = gradient(m, logp, logp, mask, labels)
        np.testing.assert_allclose(-loss, objective, rtol=1e-5)
        np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_law_10_limits_of_the_temperatures():
    labels = np.array([[1, 0, 0]], F)
    plain, _ = gradient(method("disco", late="disco_b"), LOGP, OLD, FULL, labels)
    hot, _ = gradient(method("disco", score_tau=1e5), LOGP, OLD, FULL, labels)
    np.testing.assert_allclose(hot, plain, rtol=1e-4)
    two = np.array([[1, 1, 0]], F)
    even, _ = gradient(method("drpo", length_lambda=1e6), LOGP, OLD, FULL, two)
    disco, _ = gradient(METHODS["disco"], LOGP, OLD, FULL, two)
    np.testing.assert_allclose(even, disco, rtol=1e-5)


def test_uncoupled_methods_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="does not couple"):
        late_advantages(METHODS["grpo"], LOGP, old_logp=OLD, mask=FULL, targets=np.ones((1, 3), F))
    with pytest.raises(ValueError, match="one row of logp per target"):
        late_advantages(METHODS["disco"], LOGP, old_logp=OLD, mask=FULL, targets=np.ones((2, 3), F))
