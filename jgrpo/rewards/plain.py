"""What crosses the wall of a sandbox: plain data as text, limits, and the one error.

Plain data are None, bools, numbers, strings, bytes, and lists, tuples, sets and dicts of them. A
value is written as JSON with tags inside the sandbox and read back outside, so that no object, no
`__eq__` and no shared structure of a foreign program ever arrives here. The modules that use this
file run it on both sides; it imports the standard library only.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

Result = TypeVar("Result")

Plain: TypeAlias = Any
"""Plain data, as above; a float may be nan or infinite."""

Call: TypeAlias = Callable[[str, Sequence[Plain], Mapping[str, Plain]], Plain]
"""Calls a function of a program: its name, positional and named arguments."""

Kind: TypeAlias = Literal["raised", "limit", "unsupported", "refused"]

MAX_DEPTH = 100
"""Levels of nesting that a value may have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use up.

    Attributes:
      time_s: seconds of running: of its definition and of each call; of all of them together, no
        call begins after that.
      memory_bytes: heap of the program.
      output_chars: length of a value as text, and of what it prints (monty; bwrap drops prints).
    """

    time_s: float = 3.0
    memory_bytes: int = 256 << 20
    output_chars: int = 200_000


class ProgramError(Exception):
    """A program did not do what it was asked to.

    Attributes:
      kind: `raised` (an error of its own, such as a SyntaxError), `limit` (time, memory, recursion
        or output), `unsupported` (the sandbox does not know a part of Python), `refused` (it
        returned what is not plain data).
    """

    def __init__(self, kind: Kind, detail: str):
        super().__init__(f"{kind}: {detail[:200]}")
        self.kind: Kind = kind


class Clock:
    """Adds up the time that a program takes, and lets nothing begin after its limit."""

    def __init__(self, limits: Limits):
        self._left_s = limits.time_s

    def run(self, step: Callable[[], Result]) -> Result:
        """Takes a step of the program, and its time.

        Raises:
          ProgramError: if the time was used up before.
        """
        if self._left_s <= 0:
            raise ProgramError("limit", "its time is used up")
        begun = time.monotonic()
        try:
            return step()
        finally:
            self._left_s -= time.monotonic() - begun


def encoder(most_depth: int) -> Callable[[Plain], Any]:
    """Returns the function that writes a value in terms of JSON; see `encode`.

    Its source is handed to sandboxes too, some of which know a part of Python only: no imports, no
    `yield`. It keeps the builtins that it needs, because a program may well call a variable `list`.
    """
    is_a, text, exact, error = isinstance, str, repr, TypeError
    boolean, integer, real, imaginary, octets = bool, int, float, complex, bytes
    mapping, row = dict, list
    kinds = (("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset))

    def write(value, depth=0):
        if depth > most_depth:
            raise error("a value is nested too deeply")
        if value is None or is_a(value, boolean) or is_a(value, text):
            return value
        if is_a(value, integer):
            return ["int", text(value)]
        if is_a(value, real):
            return ["float", exact(value)]
        if is_a(value, imaginary):
            return ["complex", exact(value.real), exact(value.imag)]
        if is_a(value, octets):
            return ["bytes", row(value)]
        if is_a(value, mapping):
            pairs = [[write(part, depth + 1) for part in pair] for pair in value.items()]
            return ["dict", pairs]
        for name, kind in kinds:
            if is_a(value, kind):
                return [name, [write(item, depth + 1) for item in value]]
        raise error("a value is not plain data")

    return write


encode = encoder(MAX_DEPTH)
"""Writes plain data in terms of JSON; raises TypeError for anything else. Of an instance of a
subclass, it writes what the base class holds."""


def decode(line: str, most_chars: int) -> Plain:
    """Reads a value that `encode` and `json.dumps` wrote; whatever the text, it is safe.

    Args:
      line: text from a sandbox.
      most_chars: length from which on it is refused.

    Raises:
      ProgramError: if the text is too long or is not of that form.

    Example:
      >>> decode('["tuple", [["int", "3"], "a", null]]', 100)
      (3, 'a', None)
    """
    if len(line) > most_chars:
        raise ProgramError("limit", f"a value longer than {most_chars} characters")
    try:
        return _read(json.loads(line), 0)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError) as error:
        raise ProgramError("refused", f"no plain data: {error}") from error


_ROWS: Mapping[str, Callable[[list[Plain]], Plain]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}


def _read(node: Any, depth: int) -> Plain:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(node, str):
        node.encode()  # half of a surrogate pair is no text
        return node
    if node is None or isinstance(node, bool):
        return node
    if not isinstance(node, list):
        raise ValueError(f"no value: {type(node).__name__}")
    tag, *parts = node
    if tag == "complex":
        real, imaginary = parts
        return complex(_float(real), _float(imaginary))
    (part,) = parts
    if tag == "int":
        return _int(part)
    if tag == "float":
        return _float(part)
    if not isinstance(part, list):
        raise ValueError(f"no parts: {type(part).__name__}")
    if tag == "bytes":
        return bytes(part)
    if tag == "dict":
        return {_read(key, depth + 1): _read(item, depth + 1) for key, item in part}
    return _ROWS[tag]([_read(item, depth + 1) for item in part])


def _int(part: Any) -> int:
    if not isinstance(part, str):
        raise ValueError("an int must be text")
    return int(part)


def _float(part: Any) -> float:
    if not isinstance(part, str):
        raise ValueError("a float must be text")
    return float(part)
