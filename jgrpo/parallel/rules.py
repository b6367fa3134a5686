"""The one table from logical axes to mesh axes, and the shardings that follow from it.

Parameters declare logical axes (`models.decoder.logical_axes`); nothing else names a mesh axis.
Letters: P prompts.
"""

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

DATA_AXES = ("replica", "fsdp")
"""Mesh axes over which prompts (and with them completions) are split."""

LOGICAL_TO_MESH = {
    "layers": None,
    "vocab": None,
    # The partitioner of jaxlib 0.10.2 aborts on a lookup in a split embedding in a shard_map.
    "embed": None,
    "model": "fsdp",
    "heads": None,
    "kv_heads": None,
    "head": None,
    "ffn": None,
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
      shapes: the parameters' shapes, in the same structure.
    """

    def one(logical: tuple[str, ...], shape: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = [
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(partition_spec(logical), shape.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(one, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def data_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading dim is prompts."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def data_size(mesh: Mesh) -> int:
    """Number of parts that prompts are split into."""
    return math.prod(mesh.shape[axis] for axis in DATA_AXES)
