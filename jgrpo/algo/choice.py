"""The entry of a slot's table: a function, and what a reader or a caller must know about it.

Each slot module ends in one dict literal from a choice's name to a `Choice`. Nothing is registered.
A function from outside fills a slot when it is named by its path, `package.module:function`; the
object of that name may also be a `Choice`, which then documents itself and says what it needs.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

F = TypeVar("F")

# The arguments that the function of each slot is called with, in order.
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "shape": ("m", "rewards", "side"),
    "base": ("m", "rewards", "side", "state"),
    "scale": ("m", "centred", "rewards", "side", "state"),
    "combine": ("m", "values", "side", "state"),
    "post": ("m", "values", "rewards", "side", "state"),
    "level": ("log_ratio", "logp", "mask", "segments"),
    "trust": ("m", "level", "advantages", "logp", "mask"),
    "veto": ("m", "tokens"),
    "correction": ("m", "tokens"),
    "weights": ("m", "mask", "lengths"),
    "penalty": ("log_ratio",),
    "bonus": ("m", "entropy"),
    "constraint": ("m", "log_ratio"),
    "late": ("m", "scored", "targets"),
    "tracker": ("m", "state", "rewards", "side"),
    "sampler": ("m", "outcomes", "valid"),
    "allocate": ("m", "estimates", "budget"),
    "plan": ("m", "size", "prompts"),
    "reshape": ("m", "ratio", "mask"),
    "guidance": ("m", "guidance", "accuracy", "step", "steps"),
    "control": ("m", "stage", "diversity", "step"),
    "draw": ("m", "values", "seen", "key", "count"),
    "refill": ("m", "rewards", "valid", "key"),
    "row_mask": ("m", "side"),
    "replay": ("m", "successes", "size", "key", "count"),
}
_TAKES_MORE = 0x04  # The flag of a code object whose function has *args.


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


def chosen(table: Mapping[str, Choice[F]], name: str) -> Choice[F]:
    """The choice of that name in a slot's table, or the outside one that the name is the path of.

    Raises:
      ValueError: if an outside name cannot be loaded.
    """
    return table[name] if name in table else _outside(name)


def outside_problem(slot: str, path: str) -> str | None:
    """Why the object at `package.module:function` cannot fill the slot; None if it can."""
    if slot not in ARGUMENTS:
        return f"must be one of the named choices, got {path!r}"
    try:
        function: Callable[..., Any] = _outside(path).function
    except ValueError as error:
        return str(error)
    code = getattr(function, "__code__", None)
    wanted = ARGUMENTS[slot]
    if code is None or code.co_flags & _TAKES_MORE:
        return None
    given = code.co_argcount
    least = given - len(getattr(function, "__defaults__", None) or ())
    if not least <= len(wanted) <= given:
        return f"{path!r} must take the arguments ({', '.join(wanted)}), but it takes {given}"
    return None


@functools.cache
def _outside(path: str) -> Choice[Any]:
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"cannot load {path!r} ({error}); it must be package.module:function, with the "
            "package on the Python path"
        ) from error
    if isinstance(found, Choice):
        return found
    if not callable(found):
        raise ValueError(f"{path!r} must be a function or a Choice, got {type(found).__name__}")
    first = (found.__doc__ or "").strip().splitlines()
    return Choice(function=found, formula=first[0] if first else f"see {path}")
