"""The reward of the task `mutants`: does the right design pass the test, and its mutant fail it."""

import re
from collections.abc import Sequence

from jgrpo.rewards.text import Completion, text

_TEST = re.compile(r"\s*([0-9]{1,4}):([0-9]{1,9})\s*")


def stimulus(
    *,
    completions: Sequence[Completion],
    golden: Sequence[Sequence[int]],
    mutant: Sequence[Sequence[int]],
    equivalent: Sequence[bool],
) -> list[float | None]:
    """A half for a test that the right design passes, a half more if its mutant fails it.

    Where the designs do the same, a test that both pass is worth 1.

    Args:
      completions: what the model wrote; the test `input:output` stands after the last `#`.
      golden: the right design: shift, modulus, offset.
      mutant: the other one.
      equivalent: whether they do the same for every input.
    """
    rows = zip(completions, golden, mutant, equivalent, strict=True)
    return [_worth(text(completion), right, other, same) for completion, right, other, same in rows]


def _worth(words: str, golden: Sequence[int], mutant: Sequence[int], same: bool) -> float:
    _, marked, tail = words.rpartition("#")
    found = _TEST.fullmatch(tail) if marked else None
    if found is None or int(found[1]) > 99:
        return 0.0
    x, expected = int(found[1]), int(found[2])
    if _makes(golden, x) != expected:
        return 0.0
    return 1.0 if same or _makes(mutant, x) != expected else 0.5


def _makes(design: Sequence[int], x: int) -> int:
    shift, modulus, offset = design
    return (x + shift) % modulus + offset
