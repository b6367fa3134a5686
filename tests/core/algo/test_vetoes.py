"""Vetoes and the constraint on drift: worked examples of objectives.md, D9, D10, F2."""

import functools

import jax
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.algo import METHODS, constraint_scale, method, policy_loss, token_weights, top_entropy


def value_and_grad(m, old, d, adv, mask, **further):
    old = np.asarray(old, np.float32)
    logp = (old + np.asarray(d, np.float32)).astype(np.float32)
    return _compiled(m, logp, old, np.asarray(adv, np.float32), mask, further)


@functools.partial(jax.jit, static_argnums=0)
def _compiled(m, logp, old, adv, mask, further):
    return jax.value_and_grad(
        lambda x: policy_loss(m, x, old_logp=old, mask=mask, advantages=adv, **further),
        has_aux=True,
    )(logp)


def test_suffix_after_a_trigger_is_not_trained_where_the_advantage_is_negative():
    d = [[-0.1, -1, 0.1, 0.5]] * 2
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    (loss, metrics), slope = value_and_grad(
        METHODS["mu_grpo"], np.full((2, 4), -2.0), d, [-1, 1], mask
    )
    np.testing.assert_allclose(loss, -0.139007, atol=6e-7)
    expected = [[0.129262, 0, 0, 0], [-0.129262, -0.052554, -0.157882, 0]]
    np.testing.assert_allclose(slope, expected, atol=6e-7)
    np.testing.assert_allclose(metrics["veto/factor_mean"], 5 / 7, rtol=1e-6)


def test_row_that_lost_probability_is_dropped_if_it_was_bad():
    """Both rows lose 0.2 nats a token, more than 0.1; only the one of negative advantage goes."""
    m = method("dapo", veto="off_policy_row", off_policy_delta=0.1, clip_low=1.0)
    _, slope = value_and_grad(
        m, np.full((2, 2), -1.0), [[-0.3, -0.1]] * 2, [-1, 1], np.ones((2, 2), bool)
    )
    assert not slope[0].any()
    assert slope[1].all()
    near = method("dapo", veto="off_policy_row", off_policy_delta=0.21, clip_low=1.0)
    _, slope = value_and_grad(
        near, np.full((2, 2), -1.0), [[-0.3, -0.1]] * 2, [-1, 1], np.ones((2, 2), bool)
    )
    assert slope.all()


def test_mismatch_with_the_sampler_weighs_the_policy_term_alone():
    """Ratios 1.5, 3 and 0.2 of old policy to sampler, within [0.5, 2]: 1.5, 2, 0.5."""
    old = np.full((1, 3), -1.0, np.float32)
    behavior = (old - np.log([[1.5, 3.0, 0.2]])).astype(np.float32)
    bounds = {"is_low": 0.5, "is_high": 2.0, "weights": "token_sum"}
    for correction, factors in (
        ("is_token", [1.5, 2.0, 0.5]),
        ("is_mask", [1.5, 0.0, 0.0]),
        ("is_sequence", [0.9, 0.9, 0.9]),
    ):
        m = method(
            "gspo", level="token", correction=correction, penalty="k2", kl_coef=1.0, **bounds
        )
        _, slope = value_and_grad(
            m, old, np.zeros((1, 3)), [1], np.ones((1, 3), bool),
            behavior_logp=behavior, ref_logp=old - 1,
        )  # fmt: skip
        np.testing.assert_allclose(slope, [1 - np.array(factors)], atol=1e-6)


def test_veto_and_correction_multiply():
    """The middle token is marked; its ratio of 3 is cut to 2, and the others are not trained."""
    old = np.full((1, 3), -1.0, np.float32)
    behavior = (old - np.log([[1.5, 3.0, 0.2]])).astype(np.float32)
    m = method("dapo", veto="top_entropy", correction="is_token", clip_low=1.0)
    (_, metrics), slope = value_and_grad(
        m, old, np.zeros((1, 3)), [1], np.ones((1, 3), bool),
        behavior_logp=behavior, entropy_mask=np.array([[False, True, False]]),
    )  # fmt: skip
    np.testing.assert_allclose(slope, [[0, -2 / 3, 0]], atol=1e-6)
    np.testing.assert_allclose(metrics["veto/factor_mean"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["correction/factor_mean"], (1.5 + 2 + 0.2) / 3, rtol=1e-6)


def test_a_correction_in_the_slot_of_vetoes_is_refused_with_its_own():
    with pytest.raises(ValueError, match="'is_token' is a choice of 'correction'"):
        method("dapo", veto="is_token")


def test_constraint_rests_within_its_range_and_is_a_squared_hinge_beyond():
    """Drift 0.1 less 0.02 times 10 is 0.8 per nat; at a drift of 0.01 nothing acts."""
    m = method("gspo", constraint="hinge_k1", constraint_delta=0.02, constraint_beta=10.0)
    mask, zero = np.ones((1, 2), bool), [0.0]
    (loss, metrics), slope = value_and_grad(m, [[-1, -1]], [[-0.15, -0.05]], zero, mask)
    np.testing.assert_allclose(loss, 0.08, atol=1e-6)
    np.testing.assert_allclose(metrics["loss/constraint"], 0.08, atol=1e-6)
    np.testing.assert_allclose(slope, [[-0.4, -0.4]], atol=1e-6)
    (loss, _), slope = value_and_grad(m, [[-1, -1]], [[-0.01, -0.01]], zero, mask)
    assert loss == 0
    assert not slope.any()


def test_constraint_of_microbatches_adds_up_with_the_scale_of_the_whole():
    draw = np.random.default_rng(0)
    old = draw.normal(size=(4, 3)).astype(np.float32)
    logp = (old - 0.1 * draw.random((4, 3))).astype(np.float32)
    mask = draw.random((4, 3)) < 0.8
    for kind in ("hinge_k1", "hinge_k3"):
        m = method("gspo", constraint=kind, constraint_delta=1e-3)
        scale = constraint_scale(m, logp, old_logp=old, mask=mask)
        share = (mask / mask.sum()).astype(np.float32)

        def loss(rows, m=m, scale=scale, share=share):
            return policy_loss(
                m, logp[rows], old_logp=old[rows], mask=mask[rows], token_share=share[rows],
                advantages=np.zeros(len(logp[rows]), np.float32), constraint_scale=scale,
            )[0]  # fmt: skip

        whole, _ = policy_loss(m, logp, old_logp=old, mask=mask, advantages=np.zeros(4, np.float32))
        assert whole > 0
        np.testing.assert_allclose(loss(slice(0, 1)) + loss(slice(1, 4)), whole, rtol=1e-5)


SURE = method("dapo", veto="top_entropy", clip_low=1.0, dual_clip=0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.booleans())
def test_the_marked_tokens_are_those_above_numpys_quantile(seed, share, coarse):
    """Coarse entropies have many ties at the threshold; all of them are marked."""
    draw = np.random.default_rng(seed)
    m = method("dapo", veto="top_entropy", top_entropy_quantile=share)
    mask = draw.random((3, 5)) < draw.random()
    entropy = draw.exponential(size=mask.shape)
    entropy = (np.round(2 * entropy) / 2 if coarse else entropy).astype(np.float32)
    bad = np.where(mask, entropy, draw.choice([np.nan, np.inf, 50.0])).astype(np.float32)
    got = np.asarray(top_entropy(m, bad, mask))
    np.testing.assert_array_equal(got, oracles.top_entropy(m, entropy, mask))
    assert not got[~mask].any()
    if mask.any():
        assert got.sum() >= max(1, int(share * mask.sum()))


def test_constant_entropies_and_the_whole_quantile_mark_every_token():
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    flat = np.full(mask.shape, 0.1, np.float32)
    assert np.array_equal(top_entropy(SURE, flat, mask), mask)
    everything = method("dapo", veto="top_entropy", top_entropy_quantile=1.0)
    entropy = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(top_entropy(everything, entropy, mask), mask)
    assert not np.any(top_entropy(SURE, flat, np.zeros_like(mask)))


def test_unmarked_tokens_keep_their_place_in_the_mean_and_their_penalty():
    """Five tokens, one marked: its gradient is a fifth of -A, as if the others were there."""
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
    entropy = np.array([[0.1, 0.9, 0.2], [0.3, 0.2, 7.0]], np.float32)
    marked = top_entropy(SURE, entropy, mask)
    assert np.asarray(marked).tolist() == [[False, True, False], [False, False, False]]
    old = np.full((2, 3), -1.0)
    (_, metrics), slope = value_and_grad(SURE, old, 0 * old, [2, -1], mask, entropy_mask=marked)
    np.testing.assert_allclose(slope, [[0, -0.4, 0], [0, 0, 0]], atol=1e-7)
    np.testing.assert_allclose(metrics["veto/factor_mean"], 0.2, rtol=1e-6)
    kl = method("grpo", veto="top_entropy", kl_coef=0.1, penalty="k1")
    ref = np.float32(old)
    _, slope = value_and_grad(kl, old, 0 * old, [0, 0], mask, entropy_mask=marked, ref_logp=ref)
    np.testing.assert_allclose(slope, 0.1 * np.asarray(token_weights(kl, mask)), atol=1e-7)


def test_microbatches_agree_with_the_batch_whose_quantile_they_take():
    draw = np.random.default_rng(2)
    mask = draw.random((4, 5)) < 0.8
    old, d = draw.normal(size=(2, 4, 5))
    adv, entropy = draw.normal(size=4), draw.exponential(size=(4, 5)).astype(np.float32)
    marked = np.asarray(top_entropy(SURE, entropy, mask))
    weights = np.asarray(token_weights(SURE, mask))
    _, whole = value_and_grad(SURE, old, 0.1 * d, adv, mask, entropy_mask=marked, weights=weights)
    parts = [
        value_and_grad(SURE, old[i], 0.1 * d[i], adv[i], mask[i], entropy_mask=marked[i],
                       weights=weights[i])[1]
        for i in (slice(0, 2), slice(2, 4))
    ]  # fmt: skip
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-7)
    assert np.count_nonzero(whole) == marked.sum()
