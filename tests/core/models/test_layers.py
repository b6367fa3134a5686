"""Rotary positions and attention against numbers worked by hand and slow oracles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.models.architecture import Architecture, RopeScaling
from jgrpo.models.layers import attend, dense, rms_norm, rope, rope_angles, rope_frequencies

ARCH = Architecture(
    family="llama",
    vocab_size=8,
    d_model=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_width=4,
    ffn_width=8,
)


def test_rms_norm_by_hand():
    """Mean square of (3, 4) is 12.5."""
    x = jnp.array([[3.0, 4.0]])
    out = rms_norm(x, jnp.array([1.0, 2.0]), 0.0)
    np.testing.assert_allclose(out, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)


def test_rms_norm_of_bfloat16_sums_in_float32():
    """256 + 1 is 256 in bfloat16, so a sum in bfloat16 would stop growing at 256 of 1024 ones."""
    x = jnp.ones((1, 1024), jnp.bfloat16)
    out = rms_norm(x, jnp.ones(1024), 0.0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), 1.0)


def test_rope_frequencies_by_hand():
    np.testing.assert_allclose(rope_frequencies(ARCH), [1.0, 0.01], rtol=1e-6)
    wide = dataclasses.replace(ARCH, rope_theta=1e6)
    np.testing.assert_allclose(rope_frequencies(wide), [1.0, 0.001], rtol=1e-6)


def test_linear_scaling_divides_every_frequency():
    arch = dataclasses.replace(ARCH, rope_scaling=RopeScaling(kind="linear", factor=4.0))
    np.testing.assert_allclose(rope_frequencies(arch), [0.25, 0.0025], rtol=1e-6)


def test_llama3_scaling_keeps_high_and_divides_low_frequencies():
    """Original context 100: 1 rad/token turns 15.9 times (kept), 0.01 turns 0.16 (divided)."""
    scaling = RopeScaling(kind="llama3", factor=8.0, original_max_positions=100)
    arch = dataclasses.replace(ARCH, rope_scaling=scaling)
    np.testing.assert_allclose(rope_frequencies(arch), [1.0, 0.01 / 8], rtol=1e-6)


def test_llama3_scaling_interpolates_between():
    """2.5 turns lie halfway between 1 and 4: half kept, half divided by 8, so 0.5625 of it."""
    context = round(2 * np.pi * 2.5 * 1000)
    scaling = RopeScaling(kind="llama3", factor=8.0, original_max_positions=context)
    arch = dataclasses.replace(ARCH, rope_scaling=scaling, rope_theta=1e6)
    np.testing.assert_allclose(rope_frequencies(arch)[1], 0.001 * 0.5625, rtol=1e-4)


def test_rotation_by_a_quarter_turn():
    """Position 1 at frequency 1 and 0.01: (1, 0, 0, 0) turns into (cos 1, 0, sin 1, 0)."""
    x = jnp.zeros((1, 1, 1, 1, 4)).at[..., 0].set(1.0)
    out = rope(x, *rope_angles(jnp.ones((1, 1, 1), jnp.int32), ARCH))
    np.testing.assert_allclose(out[0, 0, 0, 0], [np.cos(1), 0, np.sin(1), 0], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(shift=st.integers(0, 500), gap=st.integers(0, 20))
def test_scores_depend_on_the_distance_alone(shift, gap):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 1, 4))

    def score(q_position, k_position):
        rotated_q = rope(q, *rope_angles(jnp.full((1, 1, 1), q_position), ARCH))
        rotated_k = rope(k, *rope_angles(jnp.full((1, 1, 1), k_position), ARCH))
        return float((rotated_q * rotated_k).sum())

    assert score(shift + gap, shift) == pytest.approx(score(gap, 0), abs=2e-4)


def attention_oracle(q, own_k, own_v, own_mask, prefix):
    """Row by row; keys and values have heads before positions."""
    q, own_k, own_v = (np.asarray(x, np.float64) for x in (q, own_k, own_v))
    P, G, Tq, H, E = q.shape
    repeat = H // own_k.shape[2]
    out = np.zeros(q.shape)
    for p, g, t, h in np.ndindex(P, G, Tq, H):
        seen = own_mask[p % len(own_mask), 0, t]
        keys, values = own_k[p, g, h // repeat][seen], own_v[p, g, h // repeat][seen]
        if prefix is not None:
            k, v, mask = (np.asarray(x) for x in prefix)
            keys = np.concatenate([keys, k[p, h // repeat][mask[p]]])
            values = np.concatenate([values, v[p, h // repeat][mask[p]]])
        weight = np.exp(keys @ q[p, g, t, h] / np.sqrt(E))
        out[p, g, t, h] = weight @ values / weight.sum()
    return out


@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("with_prefix", [True, False])
@pytest.mark.parametrize("mask_per_prompt", [True, False])
def test_attention_matches_the_loops(H, K, with_prefix, mask_per_prompt):
    P, G, Tq, Tk, Lp, E = 2, 3, 2, 4, 5, 4
    rng = np.random.default_rng(0)
    q = rng.normal(size=(P, G, Tq, H, E)).astype(np.float32)
    own_k, own_v = rng.normal(size=(2, P, G, K, Tk, E)).astype(np.float32)
    own_mask = rng.random((P if mask_per_prompt else 1, 1, Tq, Tk)) < 0.6
    own_mask[..., 0] = True
    prefix = None
    if with_prefix:
        k, v = rng.normal(size=(2, P, K, Lp, E)).astype(np.float32)
        prefix = (k, v, np.array([[True] * 5, [False] * 3 + [True] * 2]))
    given_mask = own_mask if mask_per_prompt else own_mask[0, 0]
    out = attend(*jax.tree.map(jnp.asarray, (q, own_k, own_v, given_mask, prefix)))
    expected = attention_oracle(q, own_k, own_v, own_mask, prefix)
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_very_different_halves_stay_finite(size):
    """Logits of +-1000 against 0: all weight goes to the larger side, without overflow."""
    q = jnp.ones((1, 1, 1, 1, 1))
    own_k, own_v = jnp.full((1, 1, 1, 1, 1), size), jnp.full((1, 1, 1, 1, 1), 3.0)
    prefix = (jnp.zeros((1, 1, 1, 1)), jnp.full((1, 1, 1, 1), 5.0), jnp.ones((1, 1), bool))
    out = attend(q, own_k, own_v, jnp.ones((1, 1), bool), prefix)
    np.testing.assert_allclose(out.ravel(), [3.0 if size > 0 else 5.0])


def test_shared_keys_are_not_repeated_for_each_completion():
    """No array of the compiled program holds the prefix once per completion."""
    P, G, H, K, E, Lp = 2, 8, 4, 2, 16, 64
    q = jnp.ones((P, G, 1, H, E))
    own = jnp.ones((P, G, K, 1, E))
    prefix = (jnp.ones((P, K, Lp, E)), jnp.ones((P, K, Lp, E)), jnp.ones((P, Lp), bool))
    compiled = jax.jit(attend).lower(q, own, own, jnp.ones((1, 1), bool), prefix).compile()
    repeated_bytes = P * G * Lp * K * E * 4
    assert compiled.memory_analysis().temp_size_in_bytes < repeated_bytes / 2


def test_dense_multiplies_the_last_dimension_by_the_first():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    weight = jax.random.normal(jax.random.key(1), (4, 5, 6))
    expected = np.tensordot(x, weight, axes=1)
    np.testing.assert_allclose(dense(x, weight), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_products_add_up_in_float32():
    """Adding ones in bfloat16 stops at 256; the gradient of the weight sums over the tokens."""
    ones = jnp.ones((4096, 4096), jnp.bfloat16)
    product = dense(ones[:1], ones[:, :1])
    assert product.dtype == jnp.bfloat16
    np.testing.assert_array_equal(product.astype(jnp.float32), 4096.0)
    grads = jax.grad(lambda w: dense(ones[:, :2], w).sum().astype(jnp.float32))(ones[:2, :3])
    np.testing.assert_array_equal(grads.astype(jnp.float32), 4096.0)


@pytest.mark.parametrize("width", [512, 8192])
def test_bfloat16_product_is_the_exact_one_rounded_once(width):
    """Off by half a unit of bfloat16 (2^-9), and by float32's own rounding where terms cancel."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=(64, width)), jnp.bfloat16) for _ in range(2))
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    ours = np.asarray(dense(x, w.T), np.float64)
    np.testing.assert_allclose(ours, exact, rtol=2.0**-8, atol=1e-6 * width)
