"""Generated problems as a pure function of an index, the same on every machine and version.

Numbers come from splitmix64 on Python integers (numpy does not promise that the streams of its
generators stay the same between versions). Which split a problem belongs to is decided by a hash
of the problem itself, so that training and held-out problems cannot overlap, whatever the index.
The problems themselves are made elsewhere (`chain.py`, `arithmetic.py`, `countdown.py`).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Generic, Protocol, TypeVar, runtime_checkable

from jgrpo.types import Example

Problem = TypeVar("Problem")

_MASK = (1 << 64) - 1
_MAX_ATTEMPTS = 20_000
HELDOUT_ONE_IN = 10
"""One problem in this many is held out, if a task does not say otherwise."""
TRAIN_SIZE = 2**20
"""Indices of a generated training split; problems may come again under another index."""
HELDOUT_SIZE = 512
"""Held-out problems of a generated task, all different; fewer where there are not as many."""


@runtime_checkable
class Source(Protocol):
    """Examples by index, the same ones every time; what `grain.MapDataset.source` takes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def content_hash(text: str) -> int:
    """Returns 64 bits that depend on nothing but the text (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def is_heldout(text: str, one_in: int = HELDOUT_ONE_IN) -> bool:
    """Says whether a problem belongs to the held-out split.

    Args:
      text: the problem, written the same way wherever it turns up.
      one_in: the held-out share is 1 / one_in.
    """
    return content_hash(text) % one_in == 0


def splitmix64(seed: int) -> Iterator[int]:
    """Yields an endless sequence of 64-bit integers.

    Example:
      >>> next(splitmix64(1234567))
      6457827717110365317
    """
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        yield mixed ^ (mixed >> 31)


def stream(name: str) -> Iterator[int]:
    """Yields the endless sequence of 64-bit integers that a name determines."""
    return splitmix64(content_hash(name))


def below(draws: Iterator[int], limit: int) -> int:
    """Draws a whole number in 0 .. limit - 1 (the bias is under limit / 2**64)."""
    return (next(draws) * limit) >> 64


def chance(draws: Iterator[int], probability: float) -> bool:
    """Draws True with the given probability."""
    return next(draws) < probability * 2.0**64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(Generic[Problem]):
    """A family of problems, as three functions.

    Attributes:
      name: names the random numbers.
      propose: draws a problem, or None if the draw came to nothing.
      key: the text that the split is decided by; equivalent problems share it.
      write: turns a problem into an example; may draw more numbers.
    """

    name: str
    propose: Callable[[Iterator[int]], Problem | None]
    key: Callable[[Problem], str]
    write: Callable[[Problem, Iterator[int]], Example]


@dataclasses.dataclass(frozen=True)
class Generated(Generic[Problem]):
    """The training split of a family: example i is drawn anew whenever it is asked for."""

    family: Family[Problem]

    def __len__(self) -> int:
        return TRAIN_SIZE

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < TRAIN_SIZE:
            raise IndexError(f"index must be in 0 .. {TRAIN_SIZE - 1}, got {index}")
        draws = stream(f"{self.family.name}/train/{index}")
        for _ in range(_MAX_ATTEMPTS):
            problem = self.family.propose(draws)
            if problem is not None and not is_heldout(self.family.key(problem)):
                return self.family.write(problem, draws)
        raise ValueError(_nothing(self.family.name, "training"))


@cache  # a process may load a task many times: a sweep, several runs
def heldout(family: Family[Problem]) -> tuple[Example, ...]:
    """Draws the held-out problems of a family: all different, at most `HELDOUT_SIZE`.

    Raises:
      ValueError: if the family has none.
    """
    found: dict[str, Example] = {}
    draws = stream(f"{family.name}/heldout")
    misses = 0
    while len(found) < HELDOUT_SIZE and misses < _MAX_ATTEMPTS:
        misses += 1
        problem = family.propose(draws)
        if problem is None:
            continue
        key = family.key(problem)
        if key not in found and is_heldout(key):
            found[key] = family.write(problem, draws)
            misses = 0
    if not found:
        raise ValueError(_nothing(family.name, "held-out"))
    return tuple(found.values())


def enumerated(
    problems: Sequence[Problem],
    *,
    key: Callable[[Problem], str],
    write: Callable[[Problem], Example],
    one_in: int = HELDOUT_ONE_IN,
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Splits a small set of problems, each of which then occurs exactly once.

    Args:
      problems: all of them, different from each other.
      key: the text that the split is decided by; equivalent problems share it.
      write: turns a problem into an example.
      one_in: the held-out share is 1 / one_in.

    Returns:
      Training and held-out examples, in an order without meaning.
    """
    mixed = sorted(problems, key=lambda problem: content_hash(f"order {problem}"))
    train, held = [], []
    for problem in mixed:
        (held if is_heldout(key(problem), one_in) else train).append(write(problem))
    return tuple(train), tuple(held)


def _nothing(name: str, split: str) -> str:
    return (
        f"data.options: no {split} problem of task {name!r} was found in {_MAX_ATTEMPTS} draws; "
        "loosen the options"
    )
