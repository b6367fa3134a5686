"""What is wrong with the values of a `Method`: types, ranges, names of choices, contradictions.

Plain data in, messages out. The fields and the slots come from `row.py`, which calls this.
"""

import difflib
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Le

from jgrpo.algo.choice import outside_problem


class Declared(NamedTuple):
    """Type and range of a field.

    Attributes:
      kind: `str`, `int`, `float`, or `tuple` for a list of numbers.
      lowest: smallest value allowed.
      highest: largest value allowed.
    """

    kind: type
    lowest: Any
    highest: Any


def declared(hint: Any) -> Declared:
    """Type and range of a field, read off its annotation."""
    if typing.get_origin(hint) is tuple:
        return Declared(tuple, -math.inf, math.inf)
    if typing.get_origin(hint) is not Annotated:
        return Declared(hint, -math.inf, math.inf)
    kind, *marks = typing.get_args(hint)
    lowest, highest = -math.inf, math.inf
    for mark in marks:
        lowest = mark.ge if isinstance(mark, Ge) else lowest
        highest = mark.le if isinstance(mark, Le) else highest
    return Declared(kind, lowest, highest)


def problems(
    values: Mapping[str, object],
    fields: Mapping[str, Declared],
    slots: Mapping[str, tuple[str, ...]],
) -> dict[str, str]:
    """One message per faulty field or unknown key; empty if all is well.

    Args:
      values: any of the fields; rules that relate fields apply to those that are present.
      fields: type and range of every field.
      slots: the names that each slot accepts.
    """
    found = {}
    for field, value in values.items():
        if field not in fields:
            found[field] = f"unknown field{suggestion(field, fields)}"
        elif problem := _value_problem(field, value, fields[field], slots):
            found[field] = problem
    for field, problem in _contradictions(values):
        found.setdefault(field, problem)
    return found


def suggestion(word: str, known: Iterable[str]) -> str:
    """The names that exist, and which of them was probably meant."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{guess} (known: {', '.join(names)})"


def _value_problem(
    field: str, value: object, kind: Declared, slots: Mapping[str, tuple[str, ...]]
) -> str | None:
    if kind.kind is tuple:
        if not isinstance(value, tuple | list):
            return f"must be a list of numbers, got {value!r}"
        numbers = Declared(float, kind.lowest, kind.highest)
        faults = (_number_problem(item, numbers) for item in value)
        return next((f"each item {fault}" for fault in faults if fault), None)
    if kind.kind is not str:
        return _number_problem(value, kind)
    if not isinstance(value, str):
        return f"must be text, got {value!r}"
    if field not in slots or value in slots[field]:
        return None
    if ":" in value:
        return outside_problem(field, value)
    others = [slot for slot, names in slots.items() if value in names]
    elsewhere = f"; {value!r} is a choice of {others[0]!r}" if others else ""
    return f"unknown {value!r}{elsewhere or suggestion(value, slots[field])}"


def _number_problem(value: object, kind: Declared) -> str | None:
    accepted = (int, float) if kind.kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, accepted):
        wanted = {int: "an integer", float: "a number"}[kind.kind]
        return f"must be {wanted}, got {value!r}"
    if not math.isfinite(value):
        return f"must be finite, got {value}"
    if value < kind.lowest:
        return f"must be at least {kind.lowest}, got {value}"
    if value > kind.highest:
        return f"must be at most {kind.highest}, got {value}"
    return None


# Choices that read a constant which must be given with them: the constant, and what to set.
_REQUIRED = {
    ("weights", "constant_length"): (
        "constant_length_tokens",
        "set it to the longest completion you allow",
    ),
    ("weights", "sequence_sum_constant"): (
        "constant_length_tokens",
        "set it to the longest completion you allow",
    ),
    ("shape", "overlong"): (
        "overlong_buffer_tokens",
        "a fifth of the longest completion is usual",
    ),
}
# Choices that work only together: where the first stands, the second slot must be one of these.
_TOGETHER = (
    ("kl_in", "token_reward", "post", ("returns", "gae")),
    ("post", "items", "combine", ("keep",)),
    ("combine", "keep", "post", ("items",)),
    ("base", "tracker", "tracker", ("beta",)),
    ("combine", "multipliers", "tracker", ("multipliers",)),
    ("tracker", "multipliers", "combine", ("multipliers",)),
    ("plan", "replay", "replay", ("buckets",)),
    ("replay", "buckets", "plan", ("replay",)),
)
COUPLED = ("disco", "disco_b", "disco_ratio", "drpo", "regression")


def _contradictions(values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for (slot, choice), (constant, advice) in _REQUIRED.items():
        if values.get(slot) == choice and values.get(constant) == 0:
            yield constant, f"must be at least 1 with {slot} {choice!r}, got 0; {advice}"
    for slot, choice, other, allowed in _TOGETHER:
        got = values.get(other, allowed[0])
        # A function of the user's own may do what the named choice does.
        if values.get(slot) == choice and got not in allowed and ":" not in str(got):
            words = " or ".join(repr(word) for word in allowed)
            yield other, f"must be {words} with {slot} {choice!r}, got {got!r}"
    late, trust = values.get("late", "none"), values.get("trust", "linear")
    if late in COUPLED and trust != "linear":
        yield "trust", f"must be 'linear' with late {late!r}, got {trust!r}"
    yield from _ranges(values)


def _ranges(values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    dual, high = values.get("dual_clip"), values.get("clip_high")
    if isinstance(dual, int | float) and isinstance(high, int | float) and 0 < dual <= 1 + high:
        yield "dual_clip", f"must be 0 (off) or above 1 + clip_high = {1 + high}, got {dual}"
    least = values.get("rollouts_min", 2)
    if values.get("allocate") == "xrpo" and isinstance(least, int) and least < 2:
        yield "rollouts_min", f"must be at least 2 with allocate 'xrpo' (a deviation), got {least}"
    calls, most = values.get("calls", 1), values.get("calls_max", 1)
    if isinstance(calls, int) and isinstance(most, int) and most < calls:
        yield "calls_max", f"must be at least calls = {calls}, got {most}"
    for low, high in (
        ("min_value", "max_value"),
        ("rollouts_min", "rollouts_max"),
        ("rho_min", "rho_max"),
        ("is_low", "is_high"),
    ):
        below, above = values.get(low), values.get(high)
        if isinstance(below, int | float) and isinstance(above, int | float) and above <= below:
            yield high, f"must be above {low} = {below}, got {above}"


def refuse(name: str, found: Mapping[str, str]) -> None:
    """Raises a ValueError that lists every problem of a method's fields, if there is one."""
    if found:
        listed = "; ".join(f"{field}: {problem}" for field, problem in found.items())
        raise ValueError(f"method {name!r}: {listed}")
