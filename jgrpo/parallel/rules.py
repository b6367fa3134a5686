"""The one table from logical axes to mesh axes, and the shardings that follow from it.

Parameters declare logical axes (`models.decoder.logical_axes`); nothing else names a mesh axis.
Letters: P prompts.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

DATA_AXES = ("replica", "fsdp", "expert")
"""Mesh axes over which prompts (and with them completions) are split."""

LOGICAL_TO_MESH = {
    "layers": None,
    "vocab": "tensor",
    "ids": None,
    "embed": "fsdp",  # looked up by `models.embedding`
    "model": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "ffn": "tensor",
    "rank": None,
    "experts": "expert",
    "expert_ffn": None,
}
"""Mesh axis over which each logical axis of a parameter is split; None: every device has it all."""


def partition_spec(logical: tuple[str, ...]) -> PartitionSpec:
    """Translates the logical axes of one parameter.

    Raises:
      ValueError: if a logical axis is unknown, or two of them fall on one mesh axis.
    """
    unknown = [name for name in logical if name not in LOGICAL_TO_MESH]
    if unknown:
        raise ValueError(f"unknown logical axes {unknown}; known: {sorted(LOGICAL_TO_MESH)}")
    axes = [LOGICAL_TO_MESH[name] for name in logical]
    used = [axis for axis in axes if axis is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {logical} put one mesh axis on two dims: {axes}")
    return PartitionSpec(*axes)


def param_shardings(
    mesh: Mesh, axes: PyTree[tuple[str, ...]], shapes: PyTree[jax.ShapeDtypeStruct]
) -> PyTree[NamedSharding]:
    """Returns the sharding of every parameter.

    A dim that its mesh axis does not divide is not split, so that a small model runs on any mesh.

    Args:
      mesh: the devices.
      axes: logical axes of each parameter.
      shapes: the parameters' shapes, in the same structure. A parameter may be a tree of arrays
        with the same dims: a quantised one has scales.
    """

    def one(logical: tuple[str, ...], shape: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = [
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(partition_spec(logical), shape.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*spec))

    def all_of(logical: tuple[str, ...], shape: PyTree) -> PyTree[NamedSharding]:
        return jax.tree.map(partial(one, logical), shape)

    return jax.tree.map(all_of, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def data_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading dim is prompts."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def over_replicas(mesh: Mesh, function: Callable, out_specs: PyTree) -> Callable:
    """Maps a function of (params, batch, frozen) over the replicas; XLA has the other axes.

    Args:
      mesh: the devices.
      function: what a replica runs on its part of the batch.
      out_specs: how what it returns is laid out.
    """
    if mesh.shape["replica"] == 1:
        return function  # XLA's partitioner refuses a manual axis of size 1 beside others.
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("replica"), PartitionSpec()),
        out_specs=out_specs,
        axis_names={"replica"},
        check_vma=False,
    )


def free_axes(mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes that are still XLA's: inside of `over_replicas`, all but that one."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in mesh.axis_names if name not in manual)


def whole_over_fsdp(tree: PyTree, mesh: Mesh) -> tuple[NamedSharding, ...]:
    """Where the leaves would lie if `fsdp` split none of them; the other axes do as before.

    Args:
      tree: arrays on the mesh, or their shapes with shardings.
      mesh: the devices.
    """

    def one(x: Any) -> NamedSharding:
        spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else ()
        dims = [axes if isinstance(axes, tuple) else (axes,) for axes in spec]
        left = [tuple(name for name in axes if name not in (None, "fsdp")) for axes in dims]
        return NamedSharding(mesh, PartitionSpec(*(axes or None for axes in left)))

    return tuple(map(one, jax.tree.leaves(tree)))


def by_prompts(x: Array, mesh: Mesh | None, heads: int = 0) -> Array:
    """The array with its leading dim, prompts, split over the data axes that are still XLA's.

    Inside a compiled program. Left alone XLA may split the stream as it finds the weights split,
    by the model dim; every device then has the tokens of all.

    Args:
      x: leading dim: prompts, or lanes. If the axes do not divide them, it stays as it is.
      mesh: the devices; None: one.
      heads: a dim of heads, which is split over `tensor`; 0: there is none.
    """
    if mesh is None or x.shape[0] % free_data_size(mesh):
        return x
    between = (None,) * (heads - 1)
    of_heads = (*between, LOGICAL_TO_MESH["heads"]) if heads else ()
    return split_over(x, mesh, DATA_AXES, *of_heads)


def split_over(x: Array, mesh: Mesh | None, *dims: tuple[str, ...] | str | None) -> Array:
    """The array with its leading dims split over these axes, so far as they are still XLA's.

    Inside a compiled program.

    Args:
      x: an array. A dim that its axes do not divide is whole.
      mesh: the devices; None: one.
      dims: mesh axes of each; other dims are whole.
    """
    if mesh is None or mesh.size == 1:
        return x
    free = [name for name in free_axes(mesh) if mesh.shape[name] > 1]
    if not free:
        return x
    spec = list[tuple[str, ...] | None]()
    for size, wanted in zip(x.shape, dims, strict=False):
        names = (wanted,) if isinstance(wanted, str) else wanted or ()
        axes = tuple(name for name in free if name in names)
        divides = size % math.prod(mesh.shape[name] for name in axes) == 0
        spec.append(axes if axes and divides else None)
    at, whole = PartitionSpec(*spec), jax.sharding.get_abstract_mesh().empty
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, at) if whole else at)


def free_data_axes(mesh: Mesh, rows: int) -> tuple[str, ...]:
    """The data axes that are still XLA's; none if they do not divide so many prompts."""
    axes = tuple(name for name in free_axes(mesh) if name in DATA_AXES)
    return () if rows % free_data_size(mesh) else axes


def free_data_size(mesh: Mesh) -> int:
    """Number of parts into which XLA splits prompts: inside of `over_replicas`, of one replica."""
    return math.prod(mesh.shape[name] for name in free_axes(mesh) if name in DATA_AXES)


def split_like(shardings: PyTree[NamedSharding], tree: PyTree) -> PyTree:
    """The arrays laid out so, inside a compiled program and its maps over replicas.

    Args:
      shardings: one for each; none names the axis `replica`.
      tree: arrays. On one device they stay as they are, however they are stacked.
    """
    if jax.tree.leaves(shardings)[0].mesh.size == 1:
        return tree
    whole = jax.sharding.get_abstract_mesh().empty
    put = jax.lax.with_sharding_constraint
    return jax.tree.map(lambda at, x: put(x, at if whole else at.spec), shardings, tree)


def over_free_axes(
    mesh: Mesh, function: Callable[..., Array], in_specs: PyTree, out_specs: PyTree
) -> Callable[..., Array]:
    """Maps a function over the `free_axes` of a mesh, for what XLA cannot split by itself.

    Args:
      mesh: the devices.
      function: what a device runs on its part.
      in_specs: how its arguments are laid out.
      out_specs: how what it returns is.
    """
    whole = jax.sharding.get_abstract_mesh().empty
    return jax.shard_map(
        function,
        mesh=mesh if whole else None,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(free_axes(mesh)),
        check_vma=False,
    )


def data_size(mesh: Mesh) -> int:
    """Number of parts that prompts are split into."""
    return math.prod(mesh.shape[axis] for axis in DATA_AXES)
