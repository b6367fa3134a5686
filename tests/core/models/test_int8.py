"""8-bit integers stand for what they were rounded from, and the model computes with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import VOCAB, model, prompts

from jgrpo.models import decoder
from jgrpo.models.int8 import Int8, last_dim, quantize, quantize_params
from jgrpo.models.layers import dense


def back(x, axis):
    """The floats that an `Int8` stands for; its scale is shared along `axis`."""
    return np.asarray(x.values, np.float32) * np.expand_dims(np.asarray(x.scale), axis)


def test_quantize_by_hand():
    """Column 0: scale 254 / 127 = 2, and 3 / 2 rounds to 2. Column 1 holds zeros alone."""
    x = jnp.array([[254.0, 0.0], [-3.0, 0.0]])
    q = quantize(x, (0,))
    np.testing.assert_array_equal(q.values, [[127, 0], [-2, 0]])
    np.testing.assert_allclose(q.scale[0], 2.0)
    np.testing.assert_array_equal(back(q, 0)[:, 1], 0.0)
    assert q.values.dtype == jnp.int8


@pytest.mark.parametrize("axis", [(0,), (1,), (0, 1)])
def test_rounding_is_off_by_at_most_half_a_scale(axis):
    x = jax.random.normal(jax.random.key(0), (7, 5, 3)) * 10.0
    q = quantize(x, axis)
    assert (np.abs(back(q, axis) - x) <= np.expand_dims(q.scale, axis) * 0.5001).all()
    assert np.abs(np.asarray(q.values)).max() == 127


@pytest.mark.parametrize(("inputs", "shape"), [(1, (6, 4, 5)), (2, (3, 2, 5))])
def test_dense_multiplies_by_the_floats_they_stand_for(inputs, shape):
    x = jax.random.normal(jax.random.key(1), (2, 3, *shape[:inputs]))
    weight = jax.random.normal(jax.random.key(2), shape)
    axis = tuple(range(inputs))
    q = quantize(weight, axis)
    expected = np.tensordot(x, back(q, axis), axes=inputs)
    np.testing.assert_allclose(dense(x, q, inputs=inputs), expected, rtol=1e-5, atol=1e-5)


def test_last_dim_gives_back_floats_and_leaves_floats_alone():
    x = jax.random.normal(jax.random.key(0), (4, 3, 8))
    q = quantize(x, (-1,))
    np.testing.assert_allclose(last_dim(q, jnp.float32), back(q, -1), rtol=1e-6)
    assert last_dim(x, jnp.bfloat16) is x


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "qwen3"])
def test_model_computes_with_the_floats_they_stand_for(family):
    """Prefill, completions and logits of int8 weights are those of the weights rounded before."""
    _, graphdef, params = model(family)
    rounded = quantize_params(params)
    leaves = jax.tree.leaves(rounded, is_leaf=lambda x: isinstance(x, Int8))
    assert sum(isinstance(leaf, Int8) for leaf in leaves) == 7 + (1 if "tied" in family else 2)
    axes = {"o": (1, 2), "embed": (1,), "lm_head": (1,)}

    def floats(path, leaf):
        is_int8 = isinstance(leaf, Int8)
        return jnp.asarray(back(leaf, axes.get(path[-1].key, (1,)))) if is_int8 else leaf

    plain = jax.tree_util.tree_map_with_path(floats, rounded, is_leaf=lambda x: isinstance(x, Int8))
    asked = prompts(2, 5)
    tokens = np.random.default_rng(0).integers(3, VOCAB, (2, 3, 4)).astype(np.int32)
    out = []
    for weights in (rounded, plain):
        last, cache = decoder.prefill(graphdef, weights, asked.tokens, asked.mask)
        hidden, _ = decoder.complete(graphdef, weights, tokens, cache)
        out.append((decoder.logits(weights, last[:, -1]), decoder.logits(weights, hidden)))
    for ours, expected in zip(*out, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    exact = decoder.prefill(graphdef, params, asked.tokens, asked.mask)[0][:, -1]
    assert np.abs(decoder.logits(params, exact) - out[0][0]).max() > 1e-4
