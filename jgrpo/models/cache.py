"""Keys and values that were computed before: of prompts, and of completions in the making.

Completions keep theirs in rings of W positions. Where layers are scanned, the rings of all layers
are one array; where they stand in a tuple (`stack.unstacked`), each layer has arrays of its own,
laid out as its products read them.

Letters: P prompts, G completions per prompt, Lp prompt tokens, W width of the rings, L layers, K
key/value heads, E head width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from jgrpo.models.int8 import Int8, last_dim, quantize
from jgrpo.parallel.rules import DATA_AXES, LOGICAL_TO_MESH, data_sharding

# The dim of positions in rings, stacked and of one layer.
_POSITIONS = 1
_POSITIONS_OF_LAYER = {"k": 2, "v": 1}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KV:
    """Keys and values, as arrays or as `Int8` with a scale for each token and head.

    Attributes:
      k: keys, `[L, P, K, Lp, E]` for prompts, `[L, W, P, G, K, E]` for completions; prompts of one
        layer of a tuple without L.
      v: values, of the same shape.
    """

    # Any: trees of shardings and shapes with this structure are made from it.
    k: Any
    v: Any

    @property
    def is_int8(self) -> bool:
        """Whether they are kept as integers."""
        return isinstance(self.k, Int8)

    def put_in_layer(
        self,
        layer: Int[Array, ""],
        at: Int[Array, ""],
        k: Float[Array, "P G K 1 E"],
        v: Float[Array, "P G K 1 E"],
    ) -> tuple[Float[Array, "P G K W E"], Float[Array, "P G K W E"], "KV"]:
        """Writes one position of a layer; returns the layer's keys and values, and the new rings.

        What is carried through a scan is written in place; as a scanned output it would be copied
        in full at every step.
        """

        def write(whole: Shaped[Array, "L W P G K *E"], new: Shaped[Array, "P G K 1 *E"]) -> Array:
            where = (layer, at, 0, 0, 0, 0)[: whole.ndim]
            one = new[:, :, :, 0][None, None].astype(whole.dtype)
            return jax.lax.dynamic_update_slice(whole, one, where)

        def read(whole: Shaped[Array, "L W P G K *E"]) -> Shaped[Array, "P G K W *E"]:
            return jnp.moveaxis(jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False), 0, 3)

        fresh = KV(k=k, v=v)
        rings = jax.tree.map(write, self, fresh.as_int8() if self.is_int8 else fresh)
        mine = jax.tree.map(read, rings)
        return last_dim(mine.k, k.dtype), last_dim(mine.v, v.dtype), rings

    def as_int8(self) -> "KV":
        """The same, rounded."""
        return KV(k=quantize(self.k, (-1,)), v=quantize(self.v, (-1,)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRings:
    """Rings of one layer. In another layout XLA's CPU backend copies them whole at every step.

    Attributes:
      k: keys, `[P*G*K, E, W]`.
      v: values, `[P*G*K, W, E]`.
    """

    k: Any
    v: Any

    def put(
        self,
        at: Int[Array, ""],
        k: Float[Array, "P G K 1 E"],
        v: Float[Array, "P G K 1 E"],
    ) -> tuple[Float[Array, "P G K E W"], Float[Array, "P G K W E"], "LayerRings"]:
        """Writes one position; returns keys and values by row, and the new rings."""
        *rows, _, e = k.shape
        flat = lambda x: x.reshape(-1, 1, e).astype(self.k.dtype)  # noqa: E731
        own_k = jax.lax.dynamic_update_slice(self.k, flat(k).swapaxes(1, 2), (0, 0, at))
        own_v = jax.lax.dynamic_update_slice(self.v, flat(v), (0, at, 0))
        by_row = own_k.reshape(*rows, e, -1), own_v.reshape(*rows, -1, e)
        return *by_row, LayerRings(k=own_k, v=own_v)


Rings: TypeAlias = KV | tuple[LayerRings, ...]
"""Keys and values of completions in the making."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptCache:
    """What the completions of a group share.

    Attributes:
      kv: keys and values of the prompts; a tuple of them for unstacked layers.
      mask: `[P, Lp]`, True at real tokens.
      lengths: `[P]`, number of real tokens: the position of the first completion token.
      routed: what the routers say of the prompts' tokens (`moe.Routed`), or None.
    """

    kv: KV | tuple[KV, ...]
    mask: Any
    lengths: Any
    routed: Any = None

    def as_int8(self) -> "PromptCache":
        """The same with rounded keys and values, of stacked layers."""
        assert isinstance(self.kv, KV)
        return dataclasses.replace(self, kv=self.kv.as_int8())


def empty_rings(prompts: PromptCache, group_size: int, width: int) -> Rings:
    """Zeroed rings of `width` positions for `group_size` completions of every prompt."""
    if isinstance(prompts.kv, tuple):
        rows, heads, _, e = prompts.kv[0].k.shape
        n, dtype = rows * group_size * heads, prompts.kv[0].k.dtype
        k, v = jnp.zeros((n, e, width), dtype), jnp.zeros((n, width, e), dtype)
        return (LayerRings(k=k, v=v),) * len(prompts.kv)

    def zeros(prompt: Shaped[Array, "L P K Lp *E"]) -> Shaped[Array, "L W P G K *E"]:
        layers, rows, heads, _, *e = prompt.shape
        return jnp.zeros((layers, width, rows, group_size, heads, *e), prompt.dtype)

    return jax.tree.map(zeros, prompts.kv)


def placed_rings(rings: Rings, mesh: Mesh) -> Rings:
    """The rings split over the devices of a mesh: by prompts, and by heads where these divide.

    Inside a compiled program. XLA would keep rings that begin as zeros whole on every device.
    """
    heads = LOGICAL_TO_MESH["kv_heads"]
    if isinstance(rings, tuple):
        return jax.lax.with_sharding_constraint(rings, data_sharding(mesh))

    def one(x: Shaped[Array, "L W P G K *E"]) -> Array:
        by_head = heads if x.shape[4] % mesh.shape[heads] == 0 else None
        spec = PartitionSpec(None, None, DATA_AXES, None, by_head)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return jax.tree.map(one, rings)


def ring_width(rings: Rings) -> int:
    """Positions of the rings."""
    if isinstance(rings, tuple):
        return rings[0].v.shape[_POSITIONS_OF_LAYER["v"]]
    return jax.tree.leaves(rings)[0].shape[_POSITIONS]


def resized(rings: Rings, written: Int[Array, ""], width: int) -> Rings:
    """The rings with another number of positions; the youngest entries stay, oldest first.

    Args:
      rings: the rings.
      written: entries written so far, each at the place of its number modulo the width.
      width: positions of the new rings.
    """

    def one(x: Array, axis: int) -> Array:
        old = x.shape[axis]
        in_order = jnp.roll(x, -written, axis=axis)
        if width < old:
            return jax.lax.slice_in_dim(in_order, old - width, old, axis=axis)
        return jnp.pad(in_order, [(0, (i == axis) * (width - old)) for i in range(x.ndim)])

    if isinstance(rings, tuple):
        axes = _POSITIONS_OF_LAYER
        return tuple(
            LayerRings(k=one(layer.k, axes["k"]), v=one(layer.v, axes["v"])) for layer in rings
        )
    return jax.tree.map(lambda x: one(x, _POSITIONS), rings)


def picked(rings: Rings, rows: tuple[int, ...], pick: Callable[[Array, int], Array]) -> Rings:
    """The rings of some completions.

    Args:
      rings: the rings.
      rows: prompts P, and completions G of each.
      pick: takes an array with dims P and G, the first of them at the given axis, to another.
    """

    def one(x: Array) -> Array:
        by_row = pick(x.reshape(*rows, -1, *x.shape[1:]), 0)
        return by_row.reshape(-1, *x.shape[1:])

    if isinstance(rings, tuple):
        return jax.tree.map(one, rings)
    return jax.tree.map(lambda x: pick(x, 2), rings)
