"""Mixture of experts: a router picks some of a layer's feed-forwards for each token.

No token is dropped, and no expert has a capacity: rows are sorted by expert, and each expert
multiplies its slice of them (`jax.lax.ragged_dot`, which on CPUs computes every expert for every
row). Over the mesh axis `expert` the experts are split, and the batch too: a device gets the rows
of all devices of its axis, computes what its own experts say of them, and gives the sums back
(all-gather and reduce-scatter), so many tokens at a time that what it sorts stays small.

Letters: P, G, T, D as in `decoder.py`, N tokens, k experts of a token, X experts, F hidden width of
an expert, L layers.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float32, Int

from jgrpo.models.architecture import Architecture
from jgrpo.models.int8 import Int8
from jgrpo.parallel.rules import LOGICAL_TO_MESH, free_data_axes, over_free_axes

_EXPERT = LOGICAL_TO_MESH["experts"]
# Numbers of experts up to this are kept in one byte.
_BYTE = 256
MOST_ROWS = 2**17
"""Rows of tokens and experts that a device sorts at once: enough to fill the matrices of each of
many experts, and of a stream of 2,048 numbers in bfloat16 half a GiB."""


class Experts(NamedTuple):
    """The feed-forwards of a layer: `down(silu(gate(x)) * up(x))` each."""

    gate: Float[Array, "X D F"] | Int8
    up: Float[Array, "X D F"] | Int8
    down: Float[Array, "X F D"] | Int8


class Terms(NamedTuple):
    """What the routers say of each token; of all layers: the mean, of `differs` the largest.

    Attributes:
      balance: X * sum over experts of load * probability; averaged over tokens 1 where either is
        uniform. 0 where the load is not given.
      z: squared log-sum-exp of the router's logits.
      differs: 1 where the router would not have picked the experts that are given.
    """

    balance: Any
    z: Any
    differs: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Routed:
    """What became of tokens.

    Attributes:
      experts: numbers of the experts of each, `[..., L, k]`; of one layer `[..., k]`.
      terms: see `Terms`.
    """

    experts: Any
    terms: Terms


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Routes:
    """What routers are told.

    Attributes:
      experts: numbers of the experts to take for each token, `[..., L, k]`; None: the likeliest.
      load: share of the tokens of the whole batch that each expert gets, `[L, X]`; or None.
      taken: whether those experts are taken; else the likeliest are, and compared with them.
    """

    experts: Any = None
    load: Any = None
    taken: bool = dataclasses.field(default=True, metadata={"static": True})


def mixture(
    arch: Architecture,
    router: Float[Array, "D X"],
    experts: Experts,
    x: Float[Array, "P G T D"],
    routes: Routes | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "P G T D"], Routed]:
    """The weighed sum of what its experts say of each token.

    The weights are the router's probabilities, whoever chose the experts: with given ones they are
    computed anew, and have a gradient.

    Args:
      arch: for `experts_per_token` and `norm_topk`.
      router: its logits are float32.
      experts: the layer's feed-forwards.
      x: the normed stream.
      routes: of this layer, or None.
      mesh: devices over whose axes tokens and experts are split; None: XLA splits them.

    Returns:
      What is added to the stream, and what the router says.

    References:
      Switch Transformer, arXiv:2101.03961 (balance); GLaM and Qwen3 (softmax over all, then top k);
      ST-MoE, arXiv:2202.08906 (z); routing replay, arXiv:2507.18071 and arXiv:2510.11370. Departs:
      the load is that of the whole batch (arXiv:2501.11873), and a k-th of each token's counts.
    """
    routes = Routes() if routes is None else routes
    logits = jnp.einsum("...d,dx->...x", x, router, preferred_element_type=jnp.float32)
    law = jax.nn.softmax(logits)
    own = jax.lax.top_k(law, arch.experts_per_token)[1]
    given = None if routes.experts is None else jnp.asarray(routes.experts, jnp.int32)
    chosen = given if given is not None and routes.taken else own
    weight = jnp.take_along_axis(law, chosen, axis=-1)
    if arch.norm_topk:
        weight = weight / weight.sum(-1, keepdims=True)
    flat = lambda array: array.reshape(-1, array.shape[-1])  # noqa: E731
    y = _over_devices(mesh, (flat(x), flat(chosen), flat(weight)), experts).reshape(x.shape)
    nothing = jnp.zeros(logits.shape[:-1], jnp.float32)
    terms = Terms(
        balance=nothing
        if routes.load is None
        else arch.num_experts * jnp.einsum("...x,x->...", law, routes.load),
        z=jnp.square(jax.nn.logsumexp(logits, axis=-1)),
        differs=nothing
        if given is None
        else (jnp.sort(own) != jnp.sort(given)).any(-1).astype(jnp.float32),
    )
    return y, Routed(experts=chosen.astype(number_dtype(arch)), terms=terms)


def number_dtype(arch: Architecture) -> Any:
    """What numbers of experts are kept in."""
    return jnp.uint8 if arch.num_experts <= _BYTE else jnp.uint16


def grouped(
    x: Float[Array, "N D"],
    chosen: Int[Array, "N k"],
    weight: Float32[Array, "N k"],
    experts: Experts,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "N D"]:
    """The weighed sum of what some experts say of each row; 0 where none of them is its own.

    Args:
      x: rows.
      chosen: numbers of each row's experts.
      weight: their weights.
      experts: those numbered from `first` on.
      first: number of the first of them.
    """
    k, number = chosen.shape[1], _number(experts)
    local = (chosen - first).reshape(-1)
    local = jnp.where((local >= 0) & (local < number), local, number)  # others come last
    order = jnp.argsort(local, stable=True)
    owner = local[order]
    mine = (owner < number)[:, None]
    sizes = jnp.zeros(number + 1, jnp.int32).at[local].add(1)[:-1]
    multiplied = partial(_multiplied, sizes=sizes, owner=jnp.minimum(owner, number - 1))
    # What ragged_dot says of rows beyond the last slice has no meaning, nor has its gradient.
    rows = jnp.where(mine, jnp.repeat(x, k, axis=0)[order], 0)
    hidden = jax.nn.silu(multiplied(rows, experts.gate)) * multiplied(rows, experts.up)
    said = jnp.where(mine, multiplied(hidden, experts.down), 0)
    weighed = said.astype(jnp.float32) * weight.reshape(-1)[order][:, None]
    back = jnp.argsort(order)
    return weighed[back].reshape(-1, k, x.shape[1]).sum(1).astype(x.dtype)


def _number(experts: Experts) -> int:
    return jax.tree.leaves(experts)[0].shape[0]


def _multiplied(
    rows: Float[Array, "M A"],
    weight: Float[Array, "X A B"] | Int8,
    *,
    sizes: Int[Array, " X"],
    owner: Int[Array, " M"],
) -> Float[Array, "M B"]:
    """Each slice of rows times the matrix of its expert, in the dtype of the rows."""
    if not isinstance(weight, Int8):
        return jax.lax.ragged_dot(rows, weight, sizes)
    product = jax.lax.ragged_dot(rows, weight.values.astype(rows.dtype), sizes)
    return (product * weight.scale[owner]).astype(rows.dtype)


def _over_devices(
    mesh: Mesh | None, rows: tuple[Array, Array, Array], experts: Experts
) -> Float[Array, "N D"]:
    """`grouped` on the mesh axes that are still XLA's; rows that they do not divide stay whole.

    Left to XLA, the sorting would bring the rows of all devices together.
    """
    if mesh is None or mesh.size == 1:
        return _by_parts(lambda rows: grouped(*rows, experts), rows, 1)
    is_split = free_data_axes(mesh, rows[0].shape[0])
    spec = PartitionSpec(is_split)

    def on_device(rows: tuple[Array, Array, Array], experts: Experts) -> Array:
        first = jax.lax.axis_index(_EXPERT) * _number(experts)

        def of_part(rows: tuple[Array, Array, Array]) -> Array:
            x, chosen, weight = jax.lax.all_gather(rows, _EXPERT, tiled=True) if is_split else rows
            said = grouped(x, chosen, weight, experts, first)
            if is_split:
                return jax.lax.psum_scatter(said, _EXPERT, scatter_dimension=0, tiled=True)
            return jax.lax.psum(said, _EXPERT)

        return _by_parts(of_part, rows, mesh.shape[_EXPERT] if is_split else 1)

    specs = (spec, PartitionSpec(_EXPERT))
    return over_free_axes(mesh, on_device, specs, spec)(rows, experts)


def _by_parts(
    function: Callable[[tuple[Array, Array, Array]], Array],
    rows: tuple[Array, Array, Array],
    devices: int,
) -> Float[Array, "N D"]:
    """Applies a function to so many rows at a time that it sorts at most `MOST_ROWS`.

    Several parts are computed again in the backward pass, which else would keep them all.

    Args:
      function: of tokens, their experts, and the weights of these.
      rows: the same, of this device.
      devices: whose rows come together in it.
    """
    number, k = rows[1].shape
    fits = lambda parts: number // parts * k * devices <= MOST_ROWS  # noqa: E731
    parts = next(n for n in range(1, number + 1) if n == number or (number % n == 0 and fits(n)))
    if parts == 1:
        return function(rows)
    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)
    return jax.lax.map(jax.checkpoint(function), split).reshape(rows[0].shape)


def by_layer(routes: Routes | None, layers: Any) -> Any:
    """What each layer is told: leading dims where `layers` are stacked, else a tuple."""
    if routes is not None and routes.experts is not None:
        experts = jnp.moveaxis(jnp.asarray(routes.experts), -2, 0)
        routes = dataclasses.replace(routes, experts=experts)
    if not isinstance(layers, tuple):
        return routes
    of_layer = lambda i: jax.tree.map(lambda x: x[i], routes)  # noqa: E731
    return tuple(map(of_layer, range(len(layers))))


def over_layers(routed: Any) -> Routed | None:
    """What the routers of all layers say of each token, stacked or in a tuple; None without any."""
    if isinstance(routed, tuple):
        routed = jax.tree.map(lambda *layers: jnp.stack(layers), *routed)
    if routed is None:
        return None
    balance, z, differs = routed.terms
    terms = Terms(balance.mean(0), z.mean(0), differs.max(0))
    return Routed(experts=jnp.moveaxis(routed.experts, 0, -2), terms=terms)
