"""The decoder: prompts are read once, and the completions of a group share what was read.

`prefill` turns prompts into a `PromptCache`; `complete` runs completion tokens against it. The
sampler calls `complete` token by token with a growing cache of its own, the learner once with all
tokens, so both compute the same log-probs by the same code. Parameters are a nested dict of
arrays with a leading layer dimension (`architecture.logical_axes` lists them).

Letters: P prompts, G completions per prompt, Lp prompt tokens, Tq completion tokens of this call,
W width of the completions' own cache, V, L, D, K, E as in `architecture.py`. The LM head over
many tokens is in `logps.py`, sampling in `rollout/`.
"""

import dataclasses
import math
from typing import Any, Literal, TypeAlias, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jgrpo.models.architecture import Architecture, axis_sizes, logical_axes
from jgrpo.models.layers import attend, dense, rms_norm, rope, rope_angles
from jgrpo.types import AnyArray

Params: TypeAlias = dict[str, Any]
Remat: TypeAlias = Literal["none", "full", "dots"]
GraphDef: TypeAlias = nnx.GraphDef


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KV:
    """Keys and values of every layer.

    Attributes:
      k: keys, `[L, P, K, Lp, E]` for prompts, `[L, P, G, K, W, E]` for completions.
      v: values, of the same shape.
    """

    # Any: trees of shardings and shapes with this structure are made from it.
    k: Any
    v: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptCache:
    """What the completions of a group share.

    Attributes:
      kv: keys and values of the prompts.
      mask: `[P, Lp]`, True at real tokens.
      lengths: `[P]`, number of real tokens: the position of the first completion token.
    """

    kv: KV
    mask: Any
    lengths: Any


class Block(nnx.Module):
    """One layer: attention and a gated feed-forward, each behind a norm and added to the stream."""

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
        self.gate, self.up, self.down = weights["gate"], weights["up"], weights["down"]
        if arch.qk_norm:
            self.q_norm, self.k_norm = weights["q_norm"], weights["k_norm"]
        if arch.qkv_bias:
            self.q_bias, self.k_bias = weights["q_bias"], weights["k_bias"]
            self.v_bias = weights["v_bias"]

    def project(
        self, x: Float[Array, "P G T D"], angles: tuple[Array, Array]
    ) -> tuple[Float[Array, "P G T H E"], Float[Array, "P G K T E"], Float[Array, "P G K T E"]]:
        """Queries, keys and values of the normed stream, positions rotated in.

        Keys and values leave with heads before positions, as caches hold them.
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
        return rope(q, *angles), rope(k, *angles).swapaxes(2, 3), v.swapaxes(2, 3)

    def finish(
        self, x: Float[Array, "P G T D"], mixed: Float[Array, "P G T H E"]
    ) -> Float[Array, "P G T D"]:
        """Adds the attention output and then the feed-forward output to the stream."""
        o = self._cast(self.o)
        x = x + dense(mixed.reshape(*x.shape[:-1], -1), o.reshape(-1, o.shape[-1]))
        normed = rms_norm(x, self.mlp_norm[...], self.arch.norm_eps)
        gate = jax.nn.silu(dense(normed, self._cast(self.gate)))
        return x + dense(gate * dense(normed, self._cast(self.up)), self._cast(self.down))

    def _cast(self, param: nnx.Param) -> Array:
        return jnp.asarray(param[...], self.dtype)


class Decoder(nnx.Module):
    """Embedding, the stacked blocks, the last norm, and the LM head unless it is tied."""

    def __init__(self, arch: Architecture, key: Array, dtype: str):
        self.arch = arch
        self.dtype = dtype
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
        rows = jnp.take(jnp.asarray(self.embed[...]), tokens, axis=0, mode="clip")
        return rows.astype(self.dtype)

    def normed(self, x: Float[Array, "P G T D"]) -> Float[Array, "P G T D"]:
        """The stream after the last norm, ready for the LM head."""
        return rms_norm(x, self.final_norm[...], self.arch.norm_eps)


def build(arch: Architecture, *, dtype: str, seed: int | None = None) -> tuple[GraphDef, Params]:
    """Makes the static structure and the parameters of a model.

    Args:
      arch: the model.
      dtype: precision of activations and matrix products.
      seed: draws fresh float32 weights; None gives shapes (`jax.ShapeDtypeStruct`) only.

    Returns:
      The graph definition (hashable, to be closed over) and the parameters: matrices normal and
      scaled by their inputs, norms one, biases zero.
    """

    def make() -> Decoder:
        return Decoder(arch, jax.random.key(0 if seed is None else seed), dtype)

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
) -> tuple[Float[Array, "P Lp D"], PromptCache]:
    """Reads prompts, causally.

    Args:
      graphdef: from `build`.
      params: from `build` or a loader.
      tokens: prompt ids, padded on the left.
      mask: True at real tokens.
      remat: what a backward pass recomputes per layer.

    Returns:
      Hidden states after the last norm (without meaning at padding), and what completions need.
    """
    model: Decoder = nnx.merge(graphdef, params)
    mask = jnp.asarray(mask)
    lengths = mask.sum(axis=1, dtype=jnp.int32)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    angles = rope_angles(positions[:, None], model.arch)
    visible = _causal(mask.shape[1])[None, None] & mask[:, None, None, :]
    rebuild, layers = _scannable(model)

    def layer(x: Array, layer_params: Any) -> tuple[Array, tuple[Array, Array]]:
        block = rebuild(layer_params)
        q, k, v = block.project(x, angles)
        return block.finish(x, attend(q, k, v, visible)), (k[:, 0], v[:, 0])

    x = model.embedded(jnp.asarray(tokens)[:, None])
    x, (k, v) = jax.lax.scan(_rematted(layer, remat), x, layers)
    return model.normed(x)[:, 0], PromptCache(kv=KV(k=k, v=v), mask=mask, lengths=lengths)


@overload
def complete(
    graphdef: GraphDef,
    params: Params,
    tokens: Int[AnyArray, "P G Tq"],
    cache: PromptCache,
    *,
    own: KV,
    offset: Int[AnyArray, ""] | int = 0,
    remat: Remat = "none",
) -> tuple[Float[Array, "P G Tq D"], KV]: ...


@overload
def complete(
    graphdef: GraphDef,
    params: Params,
    tokens: Int[AnyArray, "P G Tq"],
    cache: PromptCache,
    *,
    own: None = None,
    offset: Int[AnyArray, ""] | int = 0,
    remat: Remat = "none",
) -> tuple[Float[Array, "P G Tq D"], None]: ...


def complete(
    graphdef: GraphDef,
    params: Params,
    tokens: Int[AnyArray, "P G Tq"],
    cache: PromptCache,
    *,
    own: KV | None = None,
    offset: Int[AnyArray, ""] | int = 0,
    remat: Remat = "none",
) -> tuple[Float[Array, "P G Tq D"], KV | None]:
    """Runs completion tokens after their prompts; every token sees its whole prompt.

    Args:
      graphdef: from `build`.
      params: from `build` or a loader.
      tokens: completion ids, contiguous from index `offset` of each completion.
      cache: the prompts, from `prefill` with the same parameters.
      own: keys and values of the completion tokens before `offset`, with room up to width W for
        these; None if these are all there is.
      offset: number of completion tokens before these; must be 0 without `own`.
      remat: what a backward pass recomputes per layer; only without `own`.

    Returns:
      Hidden states after the last norm, and `own` with these tokens written at `offset`.
    """
    model: Decoder = nnx.merge(graphdef, params)
    Tq = tokens.shape[2]
    start = jnp.asarray(offset, jnp.int32)
    positions = jnp.asarray(cache.lengths)[:, None] + (start + jnp.arange(Tq))[None]
    angles = rope_angles(positions[:, None], model.arch)
    x = model.embedded(tokens)
    rebuild, layers = _scannable(model)
    if own is not None:
        x, own = _with_own_cache(rebuild, layers, x, angles, cache, own, start)
        return model.normed(x), own
    visible = _causal(Tq)

    def layer(x: Array, xs: tuple[Any, KV]) -> tuple[Array, None]:
        layer_params, prompt = xs
        block = rebuild(layer_params)
        q, k, v = block.project(x, angles)
        mixed = attend(q, k, v, visible, (prompt.k, prompt.v, cache.mask))
        return block.finish(x, mixed), None

    x, _ = jax.lax.scan(_rematted(layer, remat), x, (layers, cache.kv))
    return model.normed(x), None


def head_weight(params: Params) -> Float[AnyArray, "V D"]:
    """The LM head: its own matrix, or the embedding if they are tied."""
    return params["lm_head"] if "lm_head" in params else params["embed"]


def logits(params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Next-token logits, float32, multiplied in the dtype of `hidden`; for few positions only."""
    weight = jnp.asarray(head_weight(params), hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, weight, preferred_element_type=jnp.float32)


def empty_own(cache: PromptCache, group_size: int, width: int) -> KV:
    """A zeroed cache for `width` tokens of each of `group_size` completions of every prompt."""

    def zeros(prompt: Float[Array, "L P K Lp E"]) -> Float[Array, "L P G K W E"]:
        layers, p, heads, _, e = prompt.shape
        return jnp.zeros((layers, p, group_size, heads, width, e), prompt.dtype)

    return jax.tree.map(zeros, cache.kv)


def _with_own_cache(
    rebuild: Any,
    layers: Any,
    x: Float[Array, "P G Tq D"],
    angles: tuple[Array, Array],
    cache: PromptCache,
    own: KV,
    start: Int[Array, ""],
) -> tuple[Float[Array, "P G Tq D"], KV]:
    """Runs the layers with the completions' cache in the carry.

    The whole cache is carried and written in place at (layer, start): as a scanned output it
    would be copied in full at every step.
    """
    Tq, W = x.shape[2], own.k.shape[4]
    visible = jnp.arange(W)[None] <= (start + jnp.arange(Tq))[:, None]

    def layer(carry: tuple[Array, KV], xs: tuple[Array, Any, KV]) -> tuple[tuple[Array, KV], None]:
        x, own = carry
        index, layer_params, prompt = xs
        block = rebuild(layer_params)
        q, k, v = block.project(x, angles)
        at = (index, 0, 0, 0, start, 0)
        own = KV(
            k=jax.lax.dynamic_update_slice(own.k, k[None].astype(own.k.dtype), at),
            v=jax.lax.dynamic_update_slice(own.v, v[None].astype(own.v.dtype), at),
        )
        own_k = jax.lax.dynamic_index_in_dim(own.k, index, keepdims=False)
        own_v = jax.lax.dynamic_index_in_dim(own.v, index, keepdims=False)
        mixed = attend(q, own_k, own_v, visible, (prompt.k, prompt.v, cache.mask))
        return (block.finish(x, mixed), own), None

    index = jnp.arange(own.k.shape[0])
    (x, own), _ = jax.lax.scan(layer, (x, own), (index, layers, cache.kv))
    return x, own


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
    scale = math.prod(inputs.get(name, shape[:1])) ** -0.5
    if name in ("o", "down"):
        scale /= (2 * arch.num_layers) ** 0.5
    return nnx.Param(scale * jax.random.normal(key, shape, jnp.float32))


def _causal(width: int) -> Bool[Array, "T T"]:
    return jnp.tril(jnp.ones((width, width), bool))


def _scannable(model: Decoder) -> tuple[Any, Any]:
    """The stacked blocks as (function from one layer's parameters to its block, parameters)."""
    graphdef, layers = nnx.split(model.layers, nnx.Param)
    return lambda layer_params: nnx.merge(graphdef, layer_params), layers


def _rematted(layer: Any, remat: Remat) -> Any:
    if remat == "none":
        return layer
    # CSE cannot undo the recomputation inside a scan, so the barrier against it is left out.
    return jax.checkpoint(layer, policy=_REMAT_POLICIES[remat], prevent_cse=False)


_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
