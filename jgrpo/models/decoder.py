"""The decoder: prompts are read once, and the completions of a group share what was read.

`prefill` turns prompts into a `PromptCache`; the learner runs whole completions against it
(`complete`), the sampler one token of each at a time (`extend`). Both go through the same blocks
and the same attention, so that they compute the same log-probs. Parameters are a nested dict of
arrays with a leading layer dimension (`architecture.logical_axes` lists them).

Letters: P prompts, G completions per prompt, Lp prompt tokens, T completion tokens, W width of the
completions' own cache, V, L, D, K, E as in `architecture.py`. The LM head over many tokens is in
`logps.py`, sampling in `rollout/`.
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jgrpo.models import embedding, moe
from jgrpo.models.architecture import Architecture, axis_sizes, logical_axes
from jgrpo.models.attention import XLA, Attention
from jgrpo.models.cache import KV, PromptCache, Rings
from jgrpo.models.int8 import Int8, last_dim
from jgrpo.models.layers import dense, in_dtype, rms_norm, rope, rope_angles
from jgrpo.models.stack import rounded, through
from jgrpo.parallel.rules import by_prompts
from jgrpo.types import AnyArray

Params: TypeAlias = dict[str, Any]
Remat: TypeAlias = Literal["none", "full", "dots"]
GraphDef: TypeAlias = nnx.GraphDef


class Block(nnx.Module):
    """One layer: attention and gated feed-forwards, each behind a norm and added to the stream."""

    def __init__(self, arch: Architecture, key: Array, dtype: str):
        self.arch = arch
        self.dtype = dtype
        axes = {name: axes[1:] for name, axes in logical_axes(arch)["layers"].items()}
        weights = {
            name: _initial(arch, name, axes[name], subkey)
            for name, subkey in zip(axes, jax.random.split(key, len(axes)), strict=True)
        }
        self.attn_norm, self.mlp_norm = weights["attn_norm"], weights["mlp_norm"]
        self.q, self.k, self.v, self.o = (weights[name] for name in "qkvo")
        if arch.num_experts:
            self.router, self.experts_gate = weights["router"], weights["experts_gate"]
            self.experts_up, self.experts_down = weights["experts_up"], weights["experts_down"]
        else:
            self.gate, self.up, self.down = weights["gate"], weights["up"], weights["down"]
        if arch.qk_norm:
            self.q_norm, self.k_norm = weights["q_norm"], weights["k_norm"]
        if arch.qkv_bias:
            self.q_bias, self.k_bias = weights["q_bias"], weights["k_bias"]
            self.v_bias = weights["v_bias"]

    def project(
        self, x: Float[Array, "P G T D"], angles: tuple[Array, Array], mesh: Mesh | None = None
    ) -> tuple[Float[Array, "P G T H E"], Float[Array, "P G K T E"], Float[Array, "P G K T E"]]:
        """Queries, keys and values of the normed stream, positions rotated in.

        Keys and values leave with heads before positions, as caches hold them; over a mesh all are
        split by prompts and heads.
        """
        normed = rms_norm(x, self.attn_norm[...], self.arch.norm_eps)
        q, k, v = (dense(normed, self._cast(weight)) for weight in (self.q, self.k, self.v))
        if self.arch.qkv_bias:
            q = q + self._cast(self.q_bias)[None, None, None]
            k = k + self._cast(self.k_bias)[None, None, None]
            v = v + self._cast(self.v_bias)[None, None, None]
        if self.arch.qk_norm:
            q = rms_norm(q, self.q_norm[...], self.arch.norm_eps)
            k = rms_norm(k, self.k_norm[...], self.arch.norm_eps)
        q, k, v = rope(q, *angles), rope(k, *angles).swapaxes(2, 3), v.swapaxes(2, 3)
        k, v = (by_prompts(x, mesh, heads=2) for x in (k, v))
        return by_prompts(q, mesh, heads=3), k, v

    def finish(
        self,
        x: Float[Array, "P G T D"],
        mixed: Float[Array, "P G T H E"],
        routes: moe.Routes | None = None,
        mesh: Mesh | None = None,
    ) -> tuple[Float[Array, "P G T D"], moe.Routed | None]:
        """Adds the attention output and then the feed-forward output to the stream.

        Also what the router says, if there is one; `routes` are for `moe.mixture`.
        """
        mixed = by_prompts(mixed, mesh, heads=3)
        x = by_prompts(x + dense(mixed, self._cast(self.o), inputs=2), mesh)
        normed = rms_norm(x, self.mlp_norm[...], self.arch.norm_eps)
        if self.arch.num_experts:
            of_experts = (self.experts_gate, self.experts_up, self.experts_down)
            experts = moe.Experts(*map(self._cast, of_experts))
            y, routed = moe.mixture(
                self.arch, self._cast(self.router), experts, normed, routes, mesh
            )
            return by_prompts(x + y, mesh), routed
        gate = jax.nn.silu(dense(normed, self._cast(self.gate)))
        y = dense(gate * dense(normed, self._cast(self.up)), self._cast(self.down))
        return by_prompts(x + y, mesh), None

    def _cast(self, param: nnx.Param) -> Any:
        return in_dtype(param.get_value(), self.dtype)


class Decoder(nnx.Module):
    """Embedding, the stacked blocks, the last norm, and the LM head unless it is tied."""

    def __init__(
        self, arch: Architecture, key: Array, dtype: str, attention: Attention, gathered: bool
    ):
        self.arch = arch
        self.dtype = dtype
        self.attention = attention
        self.gathered = gathered
        embed_key, head_key, layers_key = jax.random.split(key, 3)
        axes = logical_axes(arch)
        self.embed = _initial(arch, "embed", axes["embed"], embed_key)
        self.final_norm = _initial(arch, "final_norm", axes["final_norm"], embed_key)
        if not arch.tied_embeddings:
            self.lm_head = _initial(arch, "lm_head", axes["lm_head"], head_key)
        self.layers = nnx.vmap(lambda layer_key: Block(arch, layer_key, dtype))(
            jax.random.split(layers_key, arch.num_layers)
        )

    def embedded(self, tokens: Int[AnyArray, "P G T"]) -> Float[Array, "P G T D"]:
        """The stream before the first block. Ids outside the vocabulary are clipped: padding."""
        table, mesh = self.embed.get_value(), self.attention.mesh
        if mesh is not None and not self.gathered and embedding.is_split(table, mesh):
            return embedding.rows_of_split(table, jnp.asarray(tokens), mesh, self.dtype)
        of = lambda x: jnp.take(jnp.asarray(x), tokens, axis=0, mode="clip")  # noqa: E731
        x = last_dim(jax.tree.map(of, table), jnp.float32).astype(self.dtype)
        return by_prompts(x, mesh)

    def normed(self, x: Float[Array, "P G T D"]) -> Float[Array, "P G T D"]:
        """The stream after the last norm, ready for the LM head."""
        return rms_norm(x, self.final_norm[...], self.arch.norm_eps)


def build(
    arch: Architecture,
    *,
    dtype: str,
    seed: int | None = None,
    attention: Attention = XLA,
    gathered: bool = False,
) -> tuple[GraphDef, Params]:
    """Makes the static structure and the parameters of a model.

    Args:
      arch: the model.
      dtype: precision of activations and matrix products.
      seed: draws fresh float32 weights; None gives shapes (`jax.ShapeDtypeStruct`) only.
      attention: what computes the attention of prompts and whole completions.
      gathered: its weights will not be split over the mesh axis `fsdp`, as those of a sampler.

    Returns:
      The graph definition (hashable, to be closed over) and the parameters: matrices normal and
      scaled by their inputs, norms one, biases zero.
    """

    def make() -> Decoder:
        key = jax.random.key(0 if seed is None else seed)
        return Decoder(arch, key, dtype, attention, gathered)

    model = nnx.eval_shape(make) if seed is None else make()
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def prefill(
    graphdef: GraphDef,
    params: Params,
    tokens: Int[AnyArray, "P Lp"],
    mask: Bool[AnyArray, "P Lp"],
    *,
    remat: Remat = "none",
    routes: moe.Routes | None = None,
) -> tuple[Float[Array, "P Lp D"], PromptCache]:
    """Reads prompts, causally.

    Args:
      graphdef: from `build`.
      params: from `build` or a loader.
      tokens: prompt ids, padded on the left.
      mask: True at real tokens.
      remat: what a backward pass recomputes per layer.
      routes: what routers are told, of the experts of prompts `[P, Lp, L, k]`; or None.

    Returns:
      Hidden states after the last norm (without meaning at padding), and what completions need.
    """
    model, rebuild = _merged(graphdef, params)
    if routes is not None and routes.experts is not None:
        routes = dataclasses.replace(routes, experts=jnp.asarray(routes.experts)[:, None])
    mask = jnp.asarray(mask)
    lengths = mask.sum(axis=1, dtype=jnp.int32)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    angles = rope_angles(positions[:, None], model.arch)

    def layer(x: Array, xs: tuple[Any, Any]) -> tuple[Array, tuple[KV, moe.Routed | None]]:
        layer_params, told = xs
        block = rebuild(layer_params)
        q, k, v = block.project(x, angles, model.attention.mesh)
        mixed = model.attention.prompts(q, k, v, mask)
        x, routed = block.finish(x, mixed, told, model.attention.mesh)
        return x, (KV(k=k[:, 0], v=v[:, 0]), routed)

    x = model.embedded(jnp.asarray(tokens)[:, None])
    layers = params["layers"]
    x, (kv, routed) = through(_rematted(layer, remat), x, layers, moe.by_layer(routes, layers))
    routed = jax.tree.map(lambda x: x[:, 0], moe.over_layers(routed))
    cache = PromptCache(kv=kv, mask=mask, lengths=lengths, routed=routed)
    return model.normed(x)[:, 0], cache


def complete(
    graphdef: GraphDef,
    params: Params,
    tokens: Int[AnyArray, "P G T"],
    cache: PromptCache,
    *,
    remat: Remat = "none",
    packed: tuple[Int[AnyArray, "P G T"], Int[AnyArray, "P G T"]] | None = None,
    routes: moe.Routes | None = None,
) -> tuple[Float[Array, "P G T D"], moe.Routed | None]:
    """Runs completions after their prompts, all tokens at once; every token sees its whole prompt.

    Args:
      graphdef: from `build`.
      params: from `build` or a loader.
      tokens: completion ids from their first on.
      cache: the prompts, from `prefill` with the same parameters.
      remat: what a backward pass recomputes per layer.
      packed: the rows hold several completions behind each other: the number of the completion at
        each position, of which it sees nothing else, and the number of its tokens before. None:
        each row is one completion.
      routes: what routers are told, of the experts of tokens `[P, G, T, L, k]`; or None.

    Returns:
      Hidden states after the last norm, and what the routers say of the tokens, if there are any.
    """
    model, rebuild = _merged(graphdef, params)
    T = tokens.shape[2]
    offsets, visible = jnp.arange(T)[None, None], None
    if packed is not None:
        numbers, offsets = map(jnp.asarray, packed)
        of_same = numbers[..., :, None] == numbers[..., None, :]
        visible = jnp.tril(jnp.ones((T, T), bool))[None, None] & of_same
    angles = rope_angles(jnp.asarray(cache.lengths)[:, None, None] + offsets, model.arch)

    def layer(x: Array, xs: tuple[Any, Any, Any]) -> tuple[Array, tuple[moe.Routed | None]]:
        layer_params, prompt, told = xs
        block = rebuild(layer_params)
        q, k, v = block.project(x, angles, model.attention.mesh)
        shared = (prompt.k, prompt.v, cache.mask)
        if visible is None:
            mixed = model.attention.completions(q, k, v, shared)
        else:
            mixed = model.attention.plain(q, k, v, visible, shared)
        x, routed = block.finish(x, mixed, told, model.attention.mesh)
        return x, (routed,)

    x, layers = model.embedded(tokens), params["layers"]
    assert isinstance(cache.kv, tuple) == isinstance(layers, tuple), "prompts read by other layers"
    told = moe.by_layer(routes, layers)
    x, (routed,) = through(_rematted(layer, remat), x, layers, cache.kv, told)
    return model.normed(x), moe.over_layers(routed)


def extend(
    graphdef: GraphDef,
    params: Params,
    token: Int[Array, "P G"],
    cache: PromptCache,
    own: Rings,
    *,
    at: Int[Array, ""],
    before: Int[Array, "P G"],
    visible: Bool[Array, "P G W"],
) -> tuple[Float[Array, "P G D"], Rings, moe.Routed | None]:
    """Runs one more token of every completion, with the keys and values of those before it.

    Args:
      graphdef: from `build`.
      params: from `build`, a loader or `stack.unstacked`.
      token: one id per completion.
      cache: the prompts, from `prefill` with the same parameters.
      own: keys and values of the completions, W positions each, in any order, from `empty_rings`.
      at: the position of `own` that this token's are written to.
      before: number of completion tokens before this one.
      visible: True at the positions of `own` that this token sees, `at` among them.

    Returns:
      Hidden states after the last norm, `own` with this token, and what the routers say of it.
    """
    model, rebuild = _merged(graphdef, params)
    positions = jnp.asarray(cache.lengths)[:, None] + before
    angles = rope_angles(positions[..., None], model.arch)
    seen, layout = visible[:, :, None], {"positions_last": isinstance(own, tuple)}

    def layer(x: Array, layer_params: Any, prompt: KV, put: Any) -> tuple[Array, Any, Any]:
        block = rebuild(layer_params)
        q, k, v = block.project(x, angles, model.attention.mesh)
        own_k, own_v, rings = put(k, v)
        shared = (last_dim(prompt.k, q.dtype), last_dim(prompt.v, q.dtype), cache.mask)
        mixed = model.attention.plain(q, own_k, own_v, seen, shared, **layout)
        x, routed = block.finish(x, mixed, mesh=model.attention.mesh)
        return x, rings, routed

    x = model.embedded(token[..., None])
    if isinstance(own, tuple):
        prompts, new, said = cache.kv, [], []
        assert isinstance(prompts, tuple), "the prompts were read by stacked layers"
        for layer_params, prompt, rings in zip(params["layers"], prompts, own, strict=True):
            x, rings, routed = layer(x, layer_params, prompt, partial(rings.put, at))
            x = rounded(x)
            new.append(rings)
            said.append(routed)
        return model.normed(x)[:, :, 0], tuple(new), moe.over_layers(tuple(said))

    def scanned(carry: tuple[Array, KV], xs: Any) -> tuple[tuple[Array, KV], Any]:
        x, own = carry
        index, layer_params, prompt = xs
        x, own, routed = layer(x, layer_params, prompt, partial(own.put_in_layer, index, at))
        return (x, own), routed

    index = jnp.arange(jax.tree.leaves(own)[0].shape[0])
    (x, own), said = jax.lax.scan(scanned, (x, own), (index, params["layers"], cache.kv))
    return model.normed(x)[:, :, 0], own, moe.over_layers(said)


def head_weight(params: Params) -> Float[AnyArray, "V D"]:
    """The LM head in floats: its own matrix, or the embedding if they are tied."""
    return _head(params)


def logits(params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Next-token logits, float32, multiplied in the dtype of `hidden`; for few positions only."""
    head = _head(params)
    weight = jnp.asarray(head.values if isinstance(head, Int8) else head, hidden.dtype)
    product = jnp.einsum("...d,vd->...v", hidden, weight, preferred_element_type=jnp.float32)
    if not isinstance(head, Int8):
        return product
    return product * head.scale.reshape((1,) * (product.ndim - 1) + (-1,))


def _head(params: Params) -> Any:
    return params["lm_head"] if "lm_head" in params else params["embed"]


def _initial(arch: Architecture, name: str, axes: tuple[str, ...], key: Array) -> nnx.Param:
    """A fresh parameter; what kind it is follows from its name.

    Matrices keep the variance of what they multiply (standard deviation 1 / sqrt(inputs)), those
    that write to the stream divided by sqrt(2 L); the embedding is scaled as an LM head, which it
    may be.
    """
    sizes = axis_sizes(arch)
    shape = tuple(sizes[axis] for axis in axes)
    if name.endswith("norm"):
        return nnx.Param(jnp.ones(shape, jnp.float32))
    if name.endswith("bias"):
        return nnx.Param(jnp.zeros(shape, jnp.float32))
    inputs = {"o": shape[:-1], "down": shape[:1], "embed": shape[1:], "lm_head": shape[1:]}
    of_one = shape[1:2] if name.startswith("experts") else shape[:1]
    scale = math.prod(inputs.get(name, of_one)) ** -0.5
    if name in ("o", "down", "experts_down"):
        scale /= (2 * arch.num_layers) ** 0.5
    return nnx.Param(scale * jax.random.normal(key, shape, jnp.float32))


def _merged(graphdef: GraphDef, params: Params) -> tuple[Decoder, Any]:
    """The model, and the function from one layer's parameters to its block."""
    layers = params["layers"]
    like = layers[0] if isinstance(layers, tuple) else layers
    model: Decoder = nnx.merge(graphdef, params | {"layers": like})
    block, _ = nnx.split(model.layers, nnx.Param)
    return model, partial(nnx.merge, block)


def _rematted(layer: Any, remat: Remat) -> Any:
    if remat == "none":
        return layer
    # CSE cannot undo the recomputation inside a scan, so the barrier against it is left out.
    return jax.checkpoint(layer, policy=_REMAT_POLICIES[remat], prevent_cse=False)


_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
