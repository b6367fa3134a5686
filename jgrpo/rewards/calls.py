"""A call of a reward function: what it is, how it is made, what may come back.

A function takes keyword arguments, lists of one entry per completion each, and returns one number
per completion, or None where it has nothing to say. That is TRL's signature, so the functions get
what TRL hands to its own: see `docs/rewards.md`. Standard library only: the workers import this.
"""

import asyncio
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["", "raised", "value", "memory", "deadline", "died"]

LARGEST = (2.0 - 2.0**-23) * 2.0**127
"""The largest float32; no reward may be larger."""

TRL_ARGUMENTS = ("trainer_state", "log_extra", "log_metric")
"""What TRL passes besides columns; made in the worker for functions that take it."""


class RewardError(RuntimeError):
    """Rewards fail too often, or their worker processes cannot go on: the run has to stop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One call, as it goes to a worker.

    Attributes:
      function: `package.module:function`.
      arguments: columns by name, and options.
      count: completions in the call.
      step: the step that drew them.
      seed: names the call; Python's `random` and numpy's global generator begin from it.
    """

    function: str
    arguments: Mapping[str, Any]
    count: int = 1
    step: int = 0
    seed: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """How a function wants to be called.

    Attributes:
      named: its parameters that can be given by name.
      required: those without a default.
      positional: those without a default that cannot be given by name.
      takes_all: whether it takes any further keyword argument.
    """

    named: Sequence[str]
    required: Sequence[str]
    positional: Sequence[str]
    takes_all: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one call.

    Attributes:
      values: one entry per completion of the call; empty after a failure.
      kind: "" if it answered; `raised`; `value` (it returned something else than numbers);
        `memory`; `deadline` (it was killed); `died` (its process ended, or closed or abused the
        socket).
      detail: the failure in words, "" if there is none.
      seconds: from the call to the answer or the failure.
    """

    values: Sequence[float | None] = ()
    kind: Kind = ""
    detail: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainerState:
    """The part of TRL's trainer state that is known here.

    Attributes:
      global_step: steps done when the completions were drawn.
    """

    global_step: int


def resolve(path: str) -> Callable[..., Any]:
    """Returns the function that `package.module:function` names.

    Raises:
      ValueError: if the path is not of that form, or the module or the function is missing.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(f"{path!r} must have the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{path!r}: cannot import {module_name!r} ({error}); it must be installed, or its "
            "folder must be on PYTHONPATH"
        ) from error
    function = vars(module).get(name)
    if not callable(function):
        known = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise ValueError(f"{path!r}: {module_name!r} has no function {name!r} (it has: {known})")
    return function


def describe(path: str, package: str = "") -> tuple[Callable[..., Any], Description]:
    """Imports a function and reads its signature.

    Args:
      path: `package.module:function`.
      package: a package that it imports late, to be imported now; or "".

    Raises:
      ValueError: as `resolve`, or if it has no signature.
    """
    function = resolve(path)
    if package:
        importlib.import_module(package)
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return function, Description(
        named=[p.name for p in named],
        required=[p.name for p in named if p.default is p.empty],
        positional=[
            p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty
        ],
        takes_all=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def run(function: Callable[..., Any], described: Description, call: Call) -> Any:
    """Makes a call and returns what comes back, of a coroutine function its result."""
    given: dict[str, Any] = {
        "trainer_state": TrainerState(call.step),
        "log_extra": _ignore,
        "log_metric": _ignore,
    }
    wanted = {k: v for k, v in given.items() if described.takes_all or k in described.named}
    returned = function(**{**call.arguments, **wanted})
    return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned


def checked(returned: Any, count: int) -> list[float | None]:
    """The values that a function returned, as plain numbers.

    Args:
      returned: a list or tuple, or an array or tensor (anything with `tolist`).
      count: completions in the call.

    Raises:
      ValueError: if these are not `count` entries, each a finite number or None.
    """
    if not isinstance(returned, list | tuple) and hasattr(returned, "tolist"):
        returned = returned.tolist()
    if not isinstance(returned, list | tuple):
        raise ValueError(f"must return a list, got {type(returned).__name__}")
    if len(returned) != count:
        raise ValueError(f"must return {count} values, got {len(returned)}")
    return [None if value is None else _finite(value) for value in returned]


def _finite(value: Any) -> float:
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, int | float) or not abs(number) <= LARGEST:
        raise ValueError(
            f"must return finite numbers or None, got {value!r:.80}; None stands for no reward"
        )
    return float(number)


def parse_answer(reply: Mapping[str, Any], count: int) -> Outcome:
    """Reads what a worker sent; nothing in it is trusted.

    Raises:
      ValueError, KeyError or TypeError: if it is no answer to a call of `count` completions.
    """
    if "kind" in reply:
        kind = reply["kind"]
        if kind not in ("raised", "value", "memory"):
            raise ValueError(f"no kind of failure: {kind!r}")
        return Outcome(kind=kind, detail=str(reply["detail"]))
    return Outcome(values=checked(reply["values"], count))


async def _awaited(returned: Any) -> Any:
    return await returned


def _ignore(*_: Any, **__: Any) -> None:
    """What TRL logs beside the rewards is not kept."""
