"""What every row of METHODS, and every composition of level, trust and weights, must do.

A row that breaks a rule by design stands in EXEMPT with the reason.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jgrpo.algo import METHODS, Side, advantages, method, needs, policy_loss, token_weights
from jgrpo.algo.methods import SLOTS

B, T, P, G = 8, 6, 2, 4
LENGTHS = np.array([6, 5, 1, 0, 6, 3, 4, 2])
MASK = np.arange(T)[None, :] < LENGTHS[:, None]
EXEMPT = {("reward shift", "sft"): "the reward of a reference solution is its weight"}
COMPOSITIONS = {
    f"{level}-{trust}-{weights}": dataclasses.replace(
        METHODS["grpo"],
        level=level,
        trust=trust,
        weights=weights,
        constant_length_tokens=T,
        clip_high=0.28,
        dual_clip=3.0,
    )
    for level, trust, weights in itertools.product(SLOTS["level"], SLOTS["trust"], SLOTS["weights"])
}
rows = pytest.mark.parametrize("name", METHODS)


def arrays(seed=0, spread=0.1):
    """A batch with an empty row: log-probs of policy, old policy and reference, advantages."""
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=(B, T)).astype(np.float32)
    logp = old + spread * draw.normal(size=(B, T)).astype(np.float32)
    ref = old + 0.2 * draw.normal(size=(B, T)).astype(np.float32)
    return logp.astype(np.float32), old, ref, draw.normal(size=B).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(m, logp, old, ref, adv, mask, weights):
    return jax.value_and_grad(
        lambda x: policy_loss(
            m, x, old_logp=old, mask=mask, advantages=adv, ref_logp=ref, weights=weights
        )[0]
    )(logp)


def run(m, logp, old, ref, adv, mask=MASK, weights=None):
    return value_and_grad(
        m, logp, old, ref, adv, mask, token_weights(m, mask) if weights is None else weights
    )


def without_kl(name):
    return method(name, kl_coef=0.0)


def side(seed=1):
    draw = np.random.default_rng(seed)
    return Side(
        lengths=LENGTHS.reshape(P, G),
        max_completion_tokens=T,
        sequence_kl=draw.normal(size=(P, G)).astype(np.float32),
    )


@rows
@pytest.mark.parametrize("spread", [0.0, 0.1, 50.0])
def test_value_and_gradient_are_finite(name, spread):
    loss, gradient = run(METHODS[name], *arrays(spread=spread))
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_every_composition_agrees_with_the_loops(composition):
    m = COMPOSITIONS[composition]
    logp, old, ref, adv = arrays(spread=0.5)
    loss, gradient = run(m, logp, old, ref, adv)
    per_token = np.broadcast_to(adv[:, None], (B, T))
    expected_loss, expected = oracles.policy_loss(m, logp, old, MASK, per_token, ref)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


@rows
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_padding_has_zero_gradient_whatever_it_holds(name, bad):
    logp, old, ref, adv = arrays()
    loss, gradient = run(METHODS[name], logp, old, ref, adv)
    spoiled = [np.where(MASK, x, bad).astype(np.float32) for x in (logp, old, ref)]
    weights = np.where(MASK, token_weights(METHODS[name], MASK), bad).astype(np.float32)
    spoiled_loss, spoiled_gradient = run(METHODS[name], *spoiled, adv, weights=weights)
    assert np.all(np.asarray(spoiled_gradient)[~MASK] == 0)
    assert spoiled_loss == loss
    assert np.array_equal(spoiled_gradient, gradient)


@rows
def test_zero_advantage_gives_zero_policy_gradient(name):
    logp, old, ref, adv = arrays()
    loss, gradient = run(without_kl(name), logp, old, ref, np.zeros_like(adv))
    assert loss == 0
    assert not np.any(gradient)


@rows
def test_gradient_at_ratio_one_is_weighted_reinforce(name):
    m = without_kl(name)
    logp, _, ref, adv = arrays()
    _, gradient = run(m, logp, logp, ref, adv)
    expected = -np.asarray(token_weights(m, MASK)) * adv[:, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


@rows
@pytest.mark.parametrize("size", [1, 3, 8])
def test_microbatches_add_up_to_the_batch(name, size):
    m = METHODS[name]
    logp, old, ref, adv = arrays(spread=0.3)
    weights = np.asarray(token_weights(m, MASK))
    loss, gradient = run(m, logp, old, ref, adv)
    total, parts = 0.0, []
    for start in range(0, B, size):
        cut = slice(start, start + size)
        part, slope = run(
            m, logp[cut], old[cut], ref[cut], adv[cut], MASK[cut], weights=weights[cut]
        )
        total += part
        parts.append(slope)
    np.testing.assert_allclose(total, loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(parts), gradient, rtol=1e-6, atol=1e-6)


@rows
def test_order_of_rows_does_not_matter(name):
    order = np.random.default_rng(3).permutation(B)
    data = arrays(spread=0.3)
    loss, gradient = run(METHODS[name], *data)
    shuffled, slope = run(METHODS[name], *(x[order] for x in data), MASK[order])
    np.testing.assert_allclose(shuffled, loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, np.asarray(gradient)[order], rtol=1e-6, atol=1e-8)


@rows
def test_shifting_the_rewards_of_a_group_changes_nothing(name):
    rewards = np.random.default_rng(5).integers(-4, 5, (P, G)) / np.float32(4)
    shifted = rewards + np.array([[2.0], [-1.0]], np.float32)
    before = advantages(METHODS[name], rewards, side()).values
    after = advantages(METHODS[name], shifted, side()).values
    same = np.allclose(before, after, atol=1e-5)
    assert same != (("reward shift", name) in EXEMPT)


@rows
def test_order_of_completions_in_a_group_does_not_matter(name):
    order = np.array([2, 0, 3, 1])
    rewards = np.random.default_rng(5).normal(size=(P, G)).astype(np.float32)
    before, extra = np.asarray(advantages(METHODS[name], rewards, side()).values), side()
    assert extra.lengths is not None
    assert extra.sequence_kl is not None
    moved = dataclasses.replace(
        extra, lengths=extra.lengths[:, order], sequence_kl=extra.sequence_kl[:, order]
    )
    after = advantages(METHODS[name], rewards[:, order], moved).values
    np.testing.assert_allclose(after, before[:, order], rtol=1e-6, atol=1e-6)


@rows
def test_bfloat16_inputs_reduce_in_float32(name):
    """The same values in both types give the same loss; sums in bfloat16 would differ by 1e-2."""
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in arrays(spread=0.3)]
    wide = [x.astype(jnp.float32) for x in narrow]
    loss, gradient = run(METHODS[name], *narrow)
    expected, slope = run(METHODS[name], *wide)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-7)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), slope, rtol=1e-2, atol=1e-3)


@rows
def test_needs_are_enough_and_each_is_needed(name):
    """With what `needs` names the row runs; with one thing less, the error names it."""
    m = METHODS[name]
    logp, old, ref, adv = arrays()
    everything = side()

    def whole(given):
        extra = Side(
            lengths=everything.lengths if "lengths" in given else None,
            max_completion_tokens=T if "lengths" in given else None,
            sequence_kl=everything.sequence_kl if "sequence_kl" in given else None,
        )
        advantages(m, adv.reshape(P, G), extra)
        if m.kl_in == "loss":
            ref_logp = ref if "ref_logp" in given else None
            policy_loss(m, logp, old_logp=old, mask=MASK, advantages=adv, ref_logp=ref_logp)

    whole(needs(m))
    in_algo = {"lengths", "sequence_kl"} | ({"ref_logp"} if m.kl_in == "loss" else set())
    for need in needs(m) & in_algo:
        with pytest.raises(ValueError, match=need):
            whole(needs(m) - {need})


@rows
def test_one_shape_compiles_once(name):
    traces = []

    @jax.jit
    def step(logp, old, ref, adv, mask):
        traces.append(name)
        return policy_loss(
            METHODS[name], logp, old_logp=old, mask=mask, advantages=adv, ref_logp=ref
        )[0]

    for seed in range(3):
        step(*arrays(seed), MASK)
    assert len(traces) == 1
