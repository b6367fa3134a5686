"""Sampling in 8-bit integers: a little off the learner, the same in every layout, and smaller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead_of_time import lower, shapes_of
from by_hand import by_hand
from small_models import CONFIGS, learner, model, prompts, sampler

from jgrpo.keys import named_key, root_key
from jgrpo.learner.batch import unweighted
from jgrpo.models import cache, decoder
from jgrpo.models.architecture import from_hf
from jgrpo.rollout import decode
from jgrpo.rollout.decode import Drawing
from jgrpo.rollout.sample import Sampling

KEY = named_key(root_key(0), 0, "rollout")
EOS = (1, 5, 9, 14)
INT8 = [("int8", "model"), ("model", "int8"), ("int8", "int8")]


def generate(root, *, chunk=8, **settings):
    engine, params = sampler(root, eos_ids=EOS, chunk_tokens=chunk, **settings)
    limits = {"group_size": 4, "max_tokens": 20, "sampling": Sampling()}
    return engine.generate(params, prompts(6), KEY, **limits)


def gap(root, weights, kv):
    """Log-probs of the learner minus those of the sampler, at the sampled tokens."""
    drawn = generate(root, weights=weights, kv=kv)
    batch = unweighted(drawn, np.ones(drawn.finished.shape, bool))
    logp = np.asarray(learner().logps(model()[2], batch))
    return (logp - drawn.behavior_logp)[drawn.mask]


def test_float32_sampler_agrees_with_the_learner(root):
    assert np.abs(gap(root, "model", "model")).max() < 1e-4


@pytest.mark.parametrize(("weights", "kv"), INT8)
def test_int8_sampler_is_a_little_off_the_learner(root, weights, kv):
    """The estimated KL (k3) is small, and far above float32's."""
    off = gap(root, weights, kv)
    kl = float((np.expm1(off) - off).mean())
    assert 1e-7 < kl < 1e-2
    assert 1e-3 < np.abs(off).max() < 0.5


@pytest.mark.parametrize(
    ("slots", "devices", "chunk"), [(6, 2, 8), by_hand(6, 1, 8), by_hand(0, 1, 16)]
)
def test_int8_draws_do_not_depend_on_slots_devices_and_chunks(root, slots, devices, chunk):
    """Prompts admitted later, and rings that grow, keep their integers and scales together.

    A number between two integers may fall to the other one in another program: hence the tolerance,
    far under what a scale of another token would do.
    """
    whole = generate(root, weights="int8", kv="int8")
    other = generate(root, weights="int8", kv="int8", slots=slots, devices=devices, chunk=chunk)
    np.testing.assert_array_equal(other.mask, whole.mask)
    np.testing.assert_array_equal(other.tokens[whole.mask], whole.tokens[whole.mask])
    np.testing.assert_allclose(other.behavior_logp, whole.behavior_logp, atol=2e-3)


def test_resize_keeps_the_youngest_integers_with_their_scales():
    _, graphdef, params = model()
    drawing = Drawing(sampling=Sampling(), eos_ids=())
    asked = prompts(2)
    keys = jax.random.split(jax.random.key(0), (2, 2))
    until, limit = jnp.full(2, 2), jnp.full(2, 40)
    state, _ = decode.start(
        *(graphdef, params, asked, keys, jnp.zeros(2, jnp.int32), until, limit),
        **{"slots": 2, "width": 8, "drawing": drawing, "kv": "int8"},
    )
    state, _ = decode.advance(graphdef, params, state, until, limit, steps=6, drawing=drawing)
    wide = decode.resize(state, 16)
    assert cache.ring_width(wide.own) == 16
    for old, new in zip(jax.tree.leaves(state.own), jax.tree.leaves(wide.own), strict=True):
        order = (int(state.written) + np.arange(8)) % 8
        old, new = np.asarray(old), np.asarray(new)
        np.testing.assert_array_equal(new[:, :8], old[:, order])


def decode_bytes(kv):
    """Bytes of the caches, and of all arguments of a compiled decode call; heads of 32."""
    arch = from_hf(CONFIGS["qwen3"] | {"head_dim": 32})
    graphdef, params = decoder.build(arch, dtype="float32")
    drawing = Drawing(sampling=Sampling(), eos_ids=())
    asked, keys = prompts(4, 16), jax.random.split(KEY, (4, 8))
    begin, until, limit = jnp.zeros(4, jnp.int32), jnp.full(4, 8), jnp.full(4, 512)

    def start(params):
        args = (graphdef, params, asked, keys, begin, until, limit)
        return decode.start(*args, slots=8, width=512, drawing=drawing, kv=kv)[0]

    def advance(params, state):
        return decode.advance(graphdef, params, state, until, limit, steps=4, drawing=drawing)

    weights = shapes_of(params)
    state = lower(start, weights)[1]
    compiled = lower(advance, weights, state)[0].compile()
    caches = sum(
        x.size * x.dtype.itemsize for x in state.leaves if x.ndim > 4 and x.shape[1] == 512
    )
    return caches, compiled.memory_analysis().argument_size_in_bytes


def test_int8_caches_take_about_a_quarter_of_float32(capsys):
    """A head of 32 floats is 128 bytes; 32 integers and a scale are 36."""
    (caches, arguments), (caches8, arguments8) = decode_bytes("model"), decode_bytes("int8")
    with capsys.disabled():
        print(
            f"[caches {caches8 / caches:.3f}, decode arguments {arguments8 / arguments:.3f}] ",
            end="",
        )
    assert caches8 * 128 == caches * 36
    assert arguments - arguments8 >= caches - caches8
