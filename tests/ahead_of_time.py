"""Lowers functions of records for shapes alone; a record of shapes fails its fields' checks."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A tree whose leaves are shapes; not a pytree itself."""

    leaves: list[jax.ShapeDtypeStruct]
    structure: Any

    @property
    def bytes(self) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self.leaves)


def shapes_of(tree, sharding=None) -> Shapes:
    """The shapes of arrays or shapes; those that name no sharding get this one."""
    leaves, structure = jax.tree.flatten(tree)

    def one(x):
        own = getattr(x, "sharding", None) if isinstance(x, jax.ShapeDtypeStruct) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own or sharding)

    return Shapes([one(leaf) for leaf in leaves], structure)


def lower(function, *args: Shapes):
    """The lowered function of these trees, and the shapes of what it returns."""
    structures = []

    def on_leaves(*leaves):
        trees = [jax.tree.unflatten(a.structure, x) for a, x in zip(args, leaves, strict=True)]
        flat, structure = jax.tree.flatten(function(*trees))
        structures.append(structure)
        return flat

    lowered = jax.jit(on_leaves).lower(*(a.leaves for a in args))
    out = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in lowered.out_info]
    return lowered, Shapes(out, structures[0])
