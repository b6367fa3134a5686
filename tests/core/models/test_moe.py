"""Experts: what a layer of them computes, how they are told apart, and how they are split."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import by_hand
from small_models import EXPERTS, completed, mesh, model, prompts

from jgrpo.models import decoder, moe, stack
from jgrpo.models.architecture import from_hf, logical_axes, num_params, to_hf
from jgrpo.models.cache import empty_rings
from jgrpo.models.int8 import Int8, quantize_params
from jgrpo.parallel.rules import param_shardings

CONFIG = EXPERTS["qwen3_moe"]
ARCH = from_hf(CONFIG)
X, D, F = ARCH.num_experts, ARCH.d_model, ARCH.expert_width
RNG = np.random.default_rng(0)
ROUTER, STREAM, *EXPERT_ARRAYS = (
    jnp.asarray(scale * RNG.standard_normal(shape, np.float32))
    for scale, shape in (
        (1.0, (D, X)),
        (1.0, (4, 2, 3, D)),
        (0.3, (X, D, F)),
        (0.3, (X, D, F)),
        (0.3, (X, F, D)),
    )
)
WEIGHTS = moe.Experts(*EXPERT_ARRAYS)


def by_loops(arch, x, chosen=None):
    """One token after another, in float64; also the probabilities of the router."""
    x, router = np.asarray(x, np.float64), np.asarray(ROUTER, np.float64)
    gates, ups, downs = (np.asarray(w, np.float64) for w in WEIGHTS)
    out, laws = np.zeros(x.shape), np.zeros((*x.shape[:-1], X))
    for at in np.ndindex(*x.shape[:-1]):
        token = x[at]
        score = np.exp(token @ router)
        laws[at] = score / score.sum()
        picked = np.argsort(-laws[at])[:2] if chosen is None else chosen[at]
        weight = laws[at][picked] / (laws[at][picked].sum() if arch.norm_topk else 1.0)
        for w, e in zip(weight, picked, strict=True):
            gate = token @ gates[e]
            out[at] += w * ((gate / (1 + np.exp(-gate)) * (token @ ups[e])) @ downs[e])
    return out, laws


@pytest.mark.parametrize("norm_topk", [True, False])
def test_mixture_is_what_loops_over_tokens_give(norm_topk):
    arch = dataclasses.replace(ARCH, norm_topk=norm_topk)
    y, routed = moe.mixture(arch, ROUTER, WEIGHTS, STREAM)
    expected, laws = by_loops(arch, STREAM)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_array_equal(
        np.sort(routed.experts, -1), np.sort(np.argsort(-laws, -1)[..., :2], -1)
    )
    z = np.log(np.exp(np.asarray(STREAM @ ROUTER, np.float64)).sum(-1)) ** 2
    np.testing.assert_allclose(routed.terms.z, z, rtol=1e-5)
    assert (routed.terms.balance == 0).all()
    assert (routed.terms.differs == 0).all()


def test_given_experts_are_taken_with_the_router_s_own_weights():
    chosen = np.stack([np.full(STREAM.shape[:-1], 5), np.full(STREAM.shape[:-1], 2)], -1)
    y, routed = moe.mixture(ARCH, ROUTER, WEIGHTS, STREAM, moe.Routes(experts=chosen))
    expected, laws = by_loops(ARCH, STREAM, chosen)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    own = np.sort(np.argsort(-laws, -1)[..., :2], -1)
    differs = (own != [2, 5]).any(-1)
    assert differs.sum() > 0
    np.testing.assert_array_equal(routed.terms.differs, differs)


def test_balance_is_one_for_a_uniform_load_and_four_on_a_hand_worked_one():
    """Two experts with probability 1/2 each have all the load, of 8: 8 * (1/2 * 1/2 * 2) = 4."""
    uniform = moe.Routes(load=np.full(X, 1 / X, np.float32))
    terms = moe.mixture(ARCH, ROUTER, WEIGHTS, STREAM, uniform)[1].terms
    np.testing.assert_allclose(terms.balance, 1.0, rtol=1e-5)
    router = np.full((D, X), -1e3, np.float32)
    router[:, :2] = 0.0
    load = moe.Routes(load=np.array([0.5, 0.5, *[0] * 6], np.float32))
    ones = jnp.ones((1, 1, 1, D), jnp.float32)
    terms = moe.mixture(ARCH, jnp.asarray(router), WEIGHTS, ones, load)[1].terms
    np.testing.assert_allclose(terms.balance, 4.0, rtol=1e-5)


def dense_mixture(router, weights, x, chosen):
    """Every expert on every token, and those that are not chosen times 0."""
    law = jax.nn.softmax(x @ router)
    weight = jnp.where(jax.nn.one_hot(chosen, X).sum(-2) > 0, law, 0.0)
    weight = weight / weight.sum(-1, keepdims=True)
    hidden = jax.nn.silu(jnp.einsum("pgtd,xdf->pgtxf", x, weights.gate))
    hidden = hidden * jnp.einsum("pgtd,xdf->pgtxf", x, weights.up)
    return jnp.einsum("pgtxf,xfd,pgtx->pgtd", hidden, weights.down, weight)


@pytest.mark.parametrize("given", [False, True])
def test_gradients_are_those_of_all_experts_computed(given):
    """In a scan too, as the layers of a model are."""
    own = moe.mixture(ARCH, ROUTER, WEIGHTS, STREAM)[1].experts.astype(jnp.int32)
    chosen = (own + 1) % X if given else own
    routes = moe.Routes(experts=chosen) if given else None

    def of_ours(router, weights, x):
        layer = lambda x, _: (moe.mixture(ARCH, router, weights, x, routes)[0], None)  # noqa: E731
        return jnp.sum(jnp.sin(jax.lax.scan(layer, x, None, length=1)[0]))

    def of_dense(router, weights, x):
        return jnp.sum(jnp.sin(dense_mixture(router, weights, x, chosen)))

    found = jax.grad(of_ours, (0, 1, 2))(ROUTER, WEIGHTS, STREAM)
    expected = jax.grad(of_dense, (0, 1, 2))(ROUTER, WEIGHTS, STREAM)
    assert np.abs(found[0]).max() > 1e-2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_of_the_experts_add_up(count):
    rows = STREAM.reshape(-1, D)
    law = jax.nn.softmax(rows @ ROUTER)
    weight, chosen = jax.lax.top_k(law, 2)
    whole = moe.grouped(rows, chosen, weight, WEIGHTS)
    size = X // count
    parts = [
        moe.grouped(rows, chosen, weight, moe.Experts(*(w[i : i + size] for w in WEIGHTS)), i)
        for i in range(0, X, size)
    ]
    np.testing.assert_allclose(sum(parts), whole, atol=1e-5)


@pytest.mark.parametrize("rows", [STREAM, STREAM[:3, :1, :1]], ids=["split", "whole"])
@pytest.mark.parametrize(("fsdp", "expert"), [(1, 8), (2, 2), (1, 2)])
def test_experts_split_over_devices_say_the_same(fsdp, expert, rows):
    """Forward and gradients (of up to 2.5); 3 rows, which 8 devices do not divide, stay whole."""
    where = mesh(8, fsdp, expert)
    names = WEIGHTS._fields
    axes = {name: logical_axes(ARCH)["layers"][f"experts_{name}"][1:] for name in names}
    shapes = jax.eval_shape(WEIGHTS._asdict)
    shardings = param_shardings(where, axes, shapes)
    placed = moe.Experts(**jax.device_put(WEIGHTS._asdict(), shardings))
    assert placed.gate.addressable_shards[0].data.shape[0] == X // expert

    def loss(router, weights, x, where):
        return jnp.sum(jnp.sin(moe.mixture(ARCH, router, weights, x, mesh=where)[0]))

    many = jax.jit(jax.value_and_grad(partial(loss, where=where), (0, 1, 2)))
    one = jax.value_and_grad(partial(loss, where=None), (0, 1, 2))
    found, expected = many(ROUTER, placed, rows), one(ROUTER, WEIGHTS, rows)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("expert", [1, 2])
def test_parts_that_are_sorted_one_after_the_other_say_the_same(expert, monkeypatch):
    """24 tokens a device of 2 experts: 48 rows at once, or 8; with an axis of two, of both."""
    where = mesh(8, 1, expert)

    def traced():  # anew: jax keeps what it has traced of a function
        def total(weights, x):
            return jnp.sum(jnp.sin(moe.mixture(ARCH, ROUTER, weights, x, mesh=where)[0]))

        return jax.jit(jax.value_and_grad(total, (0, 1))).trace(WEIGHTS, x)

    x = jnp.concatenate([STREAM] * 8)
    whole = traced()
    monkeypatch.setattr(moe, "MOST_ROWS", 8 * expert)
    parts = traced()
    assert " scan[" not in str(whole.jaxpr)
    assert " scan[" in str(parts.jaxpr)
    found, expected = (t.lower().compile()(WEIGHTS, x) for t in (parts, whole))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("layers", ["stacked", by_hand("unstacked")])
def test_decoding_token_by_token_takes_the_experts_of_one_pass(layers):
    _, graphdef, params = model("qwen3_moe")
    if layers == "unstacked":
        params = stack.unstacked(params)
    asked, T = prompts(3), 4
    tokens = jnp.asarray(completed(asked, 2, T).tokens)
    _, cache = decoder.prefill(graphdef, params, asked.tokens, asked.mask)
    hidden, routed = decoder.complete(graphdef, params, tokens, cache)
    assert routed is not None
    assert routed.experts.shape == (3, 2, T, 2, 2)
    assert cache.routed.experts.shape == (3, 5, 2, 2)
    own, shape = empty_rings(cache, 2, T), (3, 2)
    for t in range(T):
        one, own, said = decoder.extend(
            graphdef,
            params,
            tokens[:, :, t],
            cache,
            own,
            at=jnp.int32(t),
            before=jnp.full(shape, t),
            visible=jnp.broadcast_to(jnp.arange(T) <= t, (*shape, T)),
        )
        np.testing.assert_allclose(one, hidden[:, :, t], atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(
            np.sort(said.experts[:, :, 0], -1), np.sort(routed.experts[:, :, t], -1)
        )


def test_int8_experts_compute_with_the_floats_they_stand_for():
    _, graphdef, params = model("qwen3_moe")
    rounded = quantize_params(params)
    int8 = {name for name, leaf in rounded["layers"].items() if isinstance(leaf, Int8)}
    assert {"experts_gate", "experts_up", "experts_down"} <= int8
    assert "router" not in int8

    def floats(path, leaf):
        if not isinstance(leaf, Int8):
            return leaf
        name = path[-1].key
        dims = {"o": (1, 2)}.get(name, (2,) if name.startswith("experts") else (1,))
        return leaf.values.astype(jnp.float32) * jnp.expand_dims(leaf.scale, dims)

    plain = jax.tree_util.tree_map_with_path(floats, rounded, is_leaf=lambda x: isinstance(x, Int8))
    asked = prompts(3)
    last = [decoder.prefill(graphdef, p, asked.tokens, asked.mask)[0] for p in (rounded, plain)]
    mask = asked.mask
    np.testing.assert_allclose(last[0][mask], last[1][mask], rtol=1e-4, atol=1e-4)


def test_config_is_read_and_written_back():
    assert (ARCH.num_experts, ARCH.experts_per_token, ARCH.expert_width) == (8, 2, 24)
    assert ARCH.norm_topk
    assert ARCH.qk_norm
    assert from_hf(to_hf(ARCH)) == ARCH
    renamed = {**CONFIG, "num_experts": None, "num_local_experts": 8}
    assert from_hf(renamed) == ARCH
    dense = from_hf({**CONFIG, "model_type": "qwen3"})
    of_experts = 2 * (32 * 8 + 8 * 3 * 32 * 24 - 3 * 32 * 64)
    assert num_params(ARCH) == num_params(dense) + of_experts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ({"num_experts": None}, "missing num_experts"),
        ({"moe_intermediate_size": None}, "missing moe_intermediate_size"),
        ({"num_experts_per_tok": 9}, "experts_per_token=9 must be from 1 to num_experts=8"),
        ({"num_experts": 0}, "cannot have num_experts=0"),
    ],
)
def test_what_is_not_modelled_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        from_hf({**CONFIG, **change})
