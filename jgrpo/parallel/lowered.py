"""Programs lowered for devices that may not be there: arguments as shapes, and who compiles."""

from collections.abc import Callable
from typing import TypeAlias

import jax
from jax.sharding import Sharding
from jax.stages import Compiled, Lowered
from jaxtyping import PyTree

Compile: TypeAlias = Callable[[str, Lowered], Compiled]
"""(name of a program, the program) -> the same compiled; a planner looks at both."""


def compile_now(name: str, lowered: Lowered) -> Compiled:
    """Compiles a program and leaves it to jax to find it again."""
    del name
    return lowered.compile()


def described(tree: PyTree, sharding: Sharding) -> PyTree[jax.ShapeDtypeStruct]:
    """What `jax.device_put` would return, as shapes with that sharding: nothing is placed."""

    def one(x: jax.typing.ArrayLike) -> jax.ShapeDtypeStruct:
        kind = jax.typeof(x)
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def with_shardings(
    shapes: PyTree[jax.ShapeDtypeStruct], shardings: PyTree[Sharding]
) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes, each where it lies."""
    like = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)  # noqa: E731
    return jax.tree.map(like, shapes, shardings)
