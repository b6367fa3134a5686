"""The entry of a slot's table: a function, and what a reader or a caller must know about it.

Each slot module ends in one dict literal from a choice's name to a `Choice`. Nothing is registered.
"""

import dataclasses
from typing import Generic, TypeVar

F = TypeVar("F")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Generic[F]):
    """One function that can fill a slot.

    Attributes:
      function: has the signature that its module states once at the top.
      formula: what it computes, in the symbols of docs/methods.md; method pages are built from it.
      constants: the `Method` fields that it reads.
      needs: what the caller must supply for it, as listed by `jgrpo.algo.needs`.
      watch: metrics that show whether it does its work.
      pitfalls: what goes wrong with it, one sentence each.
    """

    function: F
    formula: str
    constants: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()
    pitfalls: tuple[str, ...] = ()
