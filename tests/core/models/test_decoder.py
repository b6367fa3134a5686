"""The two passes agree with one plain causal pass, for every family and every way of calling."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import by_hand
from small_models import extend_in_order

from jgrpo.models import decoder, stack
from jgrpo.models.architecture import Architecture, RopeScaling, logical_axes, num_params
from jgrpo.models.cache import empty_rings

BASE = Architecture(
    family="llama",
    vocab_size=40,
    d_model=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    ffn_width=32,
    max_positions=64,
)
ARCHITECTURES = {
    "llama": dataclasses.replace(
        BASE,
        rope_scaling=RopeScaling(kind="llama3", factor=4.0, original_max_positions=16),
    ),
    "llama_tied": dataclasses.replace(BASE, tied_embeddings=True, rope_theta=100000.0),
    "qwen2": dataclasses.replace(BASE, family="qwen2", qkv_bias=True),
    "qwen3": dataclasses.replace(BASE, family="qwen3", qk_norm=True, num_kv_heads=4),
}
P, G, LP, T = 3, 2, 5, 4
LENGTHS = (5, 2, 3)


@pytest.fixture(params=list(ARCHITECTURES), scope="module")
def arch(request):
    return ARCHITECTURES[request.param]


@functools.cache
def model(arch, seed=1):
    """Weights far from their initial scale, so that every part of the forward pass matters."""
    graphdef, params = decoder.build(arch, dtype="float32", seed=seed)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return graphdef, jax.tree.unflatten(structure, noisy)


def batch(lengths=LENGTHS, width=LP):
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, BASE.vocab_size, LP)[-n:] if n else [] for n in lengths]
    tokens = np.zeros((len(lengths), width), np.int32)
    mask = np.zeros((len(lengths), width), bool)
    for i, row in enumerate(rows):
        if len(row):
            tokens[i, -len(row) :] = row
            mask[i, -len(row) :] = True
    completions = rng.integers(1, BASE.vocab_size, (len(lengths), G, T)).astype(np.int32)
    return jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(completions)


@functools.cache
def compiled(function, arch, **options):
    """A function of `decoder` for one architecture; cached, so that it compiles once a shape."""
    return jax.jit(functools.partial(function, model(arch)[0], **options))


def plain_pass(arch, params, row):
    """Hidden states of one row without padding, read as a prompt."""
    row = jnp.asarray(row)[None]
    return compiled(decoder.prefill, arch)(params, row, jnp.ones_like(row, bool))[0][0]


def two_passes(arch, params, tokens, mask, completions):
    prompt_hidden, cache = compiled(decoder.prefill, arch)(params, tokens, mask)
    hidden, _ = compiled(decoder.complete, arch)(params, completions, cache)
    return prompt_hidden, cache, hidden


def test_shared_prompt_pass_equals_plain_causal_pass(arch):
    _, params = model(arch)
    tokens, mask, completions = batch()
    prompt_hidden, _, hidden = two_passes(arch, params, tokens, mask, completions)
    for p, length in enumerate(LENGTHS):
        for g in range(G):
            row = np.concatenate([tokens[p, LP - length :], completions[p, g]])
            plain = plain_pass(arch, params, row)
            np.testing.assert_allclose(hidden[p, g], plain[length:], atol=4e-6, rtol=2e-6)
            np.testing.assert_allclose(
                prompt_hidden[p, LP - length :], plain[:length], atol=4e-6, rtol=2e-6
            )


def test_hidden_states_match_a_model_written_with_loops(arch):
    """The whole model in float64 loops: no code is shared with the implementation."""
    _, params = model(arch)
    tokens = np.array([3, 17, 8, 25, 9])
    expected = loop_forward(arch, params, tokens)
    np.testing.assert_allclose(plain_pass(arch, params, tokens), expected, atol=2e-5)


def loop_forward(arch, params, tokens):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, weight):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + arch.norm_eps) * weight

    def frequency(i):
        value = arch.rope_theta ** (-2 * i / arch.head_width)
        scaling = arch.rope_scaling
        if scaling is None:
            return value
        wavelength = 2 * np.pi / value
        original = scaling.original_max_positions
        if wavelength < original / scaling.high_freq_factor:
            return value
        if wavelength > original / scaling.low_freq_factor:
            return value / scaling.factor
        smooth = (original / wavelength - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        return (1 - smooth) * value / scaling.factor + smooth * value

    def rotate(x, position):
        half = arch.head_width // 2
        out = np.empty_like(x)
        for i in range(half):
            c, s = np.cos(position * frequency(i)), np.sin(position * frequency(i))
            out[i] = x[i] * c - x[i + half] * s
            out[i + half] = x[i + half] * c + x[i] * s
        return out

    x = params["embed"][tokens]
    for index in range(arch.num_layers):
        layer = {name: value[index] for name, value in params["layers"].items()}
        normed = norm(x, layer["attn_norm"])
        mixed = np.zeros((len(tokens), arch.num_heads, arch.head_width))
        qkv = {}
        for name in "qkv":
            value = np.einsum("td,dhe->the", normed, layer[name])
            if arch.qkv_bias:
                value = value + layer[f"{name}_bias"]
            if arch.qk_norm and name in "qk":
                value = norm(value, layer[f"{name}_norm"])
            qkv[name] = value
        for head in range(arch.num_heads):
            shared = head // (arch.num_heads // arch.num_kv_heads)
            for t in range(len(tokens)):
                query = rotate(qkv["q"][t, head], t)
                scores = np.array([query @ rotate(qkv["k"][s, shared], s) for s in range(t + 1)])
                weight = np.exp(scores / np.sqrt(arch.head_width))
                mixed[t, head] = (weight / weight.sum()) @ qkv["v"][: t + 1, shared]
        x = x + np.einsum("the,hed->td", mixed, layer["o"])
        normed = norm(x, layer["mlp_norm"])
        gate = normed @ layer["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ layer["up"])) @ layer["down"]
    return norm(x, params["final_norm"])


@pytest.mark.parametrize("layers", ["stacked", "unstacked"])
@pytest.mark.parametrize("first", [0, 2, T + 2])
def test_decoding_token_by_token_equals_one_pass(arch, first, layers):
    """Also in a ring that is entered anywhere and goes round, over entries of others."""
    _, params = model(arch)
    tokens, mask, completions = batch()
    _, cache, hidden = two_passes(arch, params, tokens, mask, completions)
    step = compiled(decoder.extend, arch)
    if layers == "unstacked":
        params = stack.unstacked(params)
        _, cache = compiled(decoder.prefill, arch)(params, tokens, mask)
    width = T + 3
    own = jax.tree.map(lambda leaf: leaf + 7.0, empty_rings(cache, G, width))
    places, out = np.arange(width), []
    for t in range(T):
        written = (first + np.arange(t + 1)) % width
        visible = np.broadcast_to(np.isin(places, written), (*completions.shape[:2], width))
        one, own, _ = step(
            params,
            completions[:, :, t],
            cache,
            own,
            at=jnp.int32(written[-1]),
            before=jnp.full(completions.shape[:2], t),
            visible=jnp.asarray(visible),
        )
        out.append(one)
    np.testing.assert_allclose(jnp.stack(out, axis=2), hidden, atol=5e-6, rtol=1e-5)
    untouched = ~np.isin(places, written)
    positions = {"k": 2, "v": 1} if isinstance(own, tuple) else {"k": 1, "v": 1}
    for rings in own if isinstance(own, tuple) else (own,):
        for name, axis in positions.items():
            by_place = np.moveaxis(np.asarray(getattr(rings, name)), axis, -1)
            assert (by_place[..., untouched] == 7.0).all()


def test_more_left_padding_changes_nothing(arch):
    _, params = model(arch)
    tokens, mask, completions = batch()
    wide_tokens, wide_mask, _ = batch(width=LP + 6)
    _, cache, hidden = two_passes(arch, params, tokens, mask, completions)
    _, wide_cache, wide_hidden = two_passes(arch, params, wide_tokens, wide_mask, completions)
    np.testing.assert_allclose(hidden, wide_hidden, atol=4e-6, rtol=2e-6)
    np.testing.assert_array_equal(cache.lengths, LENGTHS)
    np.testing.assert_array_equal(wide_cache.lengths, LENGTHS)


def test_ids_in_the_padding_change_nothing(arch):
    _, params = model(arch)
    tokens, mask, completions = batch()
    garbage = jnp.where(mask, tokens, BASE.vocab_size + 5)
    _, _, hidden = two_passes(arch, params, tokens, mask, completions)
    _, _, other = two_passes(arch, params, garbage, mask, completions)
    np.testing.assert_array_equal(hidden, other)


def test_a_prompt_of_padding_alone_yields_finite_values_and_gradients(arch):
    _, params = model(arch)
    tokens, mask, completions = batch(lengths=(0, 3))

    def loss(params):
        _, _, hidden = two_passes(arch, params, tokens, mask, completions)
        return jnp.square(hidden).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_completions_of_an_empty_prompt_equal_a_plain_pass(arch):
    _, params = model(arch)
    tokens, mask, completions = batch(lengths=(0, 3))
    _, _, hidden = two_passes(arch, params, tokens, mask, completions)
    plain = plain_pass(arch, params, completions[0, 0])
    np.testing.assert_allclose(hidden[0, 0], plain, atol=4e-6, rtol=2e-6)


def test_completions_of_one_group_do_not_see_each_other(arch):
    _, params = model(arch)
    tokens, mask, completions = batch()
    _, _, hidden = two_passes(arch, params, tokens, mask, completions)
    _, _, other = two_passes(arch, params, tokens, mask, completions.at[:, 1].set(1))
    np.testing.assert_array_equal(hidden[:, 0], other[:, 0])


@functools.cache
def shared_gradient(arch, remat):
    """Gradient of a sum over the completions' logits, by the two passes."""
    tokens, mask, completions = batch()

    def loss(params):
        _, cache = compiled(decoder.prefill, arch, remat=remat)(params, tokens, mask)
        hidden, _ = compiled(decoder.complete, arch, remat=remat)(params, completions, cache)
        return jnp.tanh(decoder.logits(params, hidden)).sum()

    return jax.jit(jax.grad(loss))(model(arch)[1])


@pytest.mark.parametrize("remat", ["full", by_hand("dots")])
def test_remat_does_not_change_the_gradient(arch, remat):
    plain, again = shared_gradient(arch, "none"), shared_gradient(arch, remat)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()), rtol=1e-4)


def test_gradient_of_the_two_passes_equals_that_of_plain_passes(arch):
    _, params = model(arch)
    tokens, _, completions = jax.tree.map(np.asarray, batch())

    def plain(params):
        total = jnp.zeros(())
        for p, length in enumerate(LENGTHS):
            for g in range(G):
                row = np.concatenate([tokens[p, LP - length :], completions[p, g]])
                hidden = plain_pass(arch, params, row)[length:]
                total += jnp.tanh(decoder.logits(params, hidden)).sum()
        return total

    shared_grad, plain_grad = shared_gradient(arch, "none"), jax.jit(jax.grad(plain))(params)
    for a, b in zip(jax.tree.leaves(shared_grad), jax.tree.leaves(plain_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()), rtol=1e-4)


def test_bfloat16_stays_near_float32(arch):
    graphdef, _ = decoder.build(arch, dtype="bfloat16")
    exact_graphdef, params = decoder.build(arch, dtype="float32", seed=3)
    tokens, mask, completions = batch()
    _, cache = decoder.prefill(graphdef, params, tokens, mask)
    hidden, _ = decoder.complete(graphdef, params, completions, cache)
    _, exact_cache = decoder.prefill(exact_graphdef, params, tokens, mask)
    exact, _ = decoder.complete(exact_graphdef, params, completions, exact_cache)
    assert hidden.dtype == cache.kv.k.dtype == jnp.bfloat16
    assert decoder.logits(params, hidden).dtype == jnp.float32
    np.testing.assert_allclose(hidden.astype(jnp.float32), exact, atol=0.1)


def test_params_have_the_structure_and_shapes_of_the_table(arch):
    graphdef, params = decoder.build(arch, dtype="float32", seed=0)
    abstract_graphdef, abstract = decoder.build(arch, dtype="float32")
    axes = jax.tree.map(len, logical_axes(arch), is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert axes == jax.tree.map(jnp.ndim, params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, abstract)
    assert graphdef == abstract_graphdef
    assert hash(graphdef) == hash(abstract_graphdef)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == num_params(arch)


def test_fresh_weights_have_the_stated_scales_and_differ_between_layers_and_seeds():
    big = dataclasses.replace(BASE, d_model=96, ffn_width=128)
    _, params = decoder.build(big, dtype="float32", seed=0)
    _, other = decoder.build(big, dtype="float32", seed=1)
    layers = params["layers"]
    assert float(layers["q"].std()) == pytest.approx(96**-0.5, rel=0.03)
    assert float(layers["down"].std()) == pytest.approx(
        (128 * 2 * big.num_layers) ** -0.5, rel=0.03
    )
    assert float(params["embed"].std()) == pytest.approx(96**-0.5, rel=0.03)
    assert (layers["attn_norm"] == 1.0).all()
    assert not (layers["q"][0] == layers["q"][1]).any()
    assert not (params["embed"] == other["embed"]).any()


def test_tied_head_is_the_embedding():
    _, tied = model(ARCHITECTURES["llama_tied"])
    _, untied = model(ARCHITECTURES["llama"])
    assert decoder.head_weight(tied) is tied["embed"]
    assert decoder.head_weight(untied) is untied["lm_head"]


@pytest.mark.parametrize("layers", ["stacked", "unstacked"])
def test_decode_steps_write_the_cache_in_place(layers):
    """With a donated cache, steps need far less scratch memory than a second cache."""
    arch = dataclasses.replace(BASE, num_layers=8)
    graphdef, params = decoder.build(arch, dtype="float32", seed=0)
    if layers == "unstacked":
        params = stack.unstacked(params)
    tokens, mask, completions = batch()
    _, cache = decoder.prefill(graphdef, params, tokens, mask)
    own = empty_rings(cache, G, 512)

    def steps(params, token, cache, own):
        def one(offset, own):
            return extend_in_order(graphdef, params, token, cache, own, offset)[1]

        return jax.lax.fori_loop(0, 4, one, own)

    lowered = jax.jit(steps, donate_argnums=3).lower(params, completions[:, :, 0], cache, own)
    analysis = lowered.compile().memory_analysis()
    one_layer_bytes = sum(x.nbytes for x in jax.tree.leaves(own)) // arch.num_layers
    assert analysis.temp_size_in_bytes < 3 * one_layer_bytes
