"""How far a text says what another says: BLEU, and the reward for short answers built on it.

Standard library only.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Le

from jgrpo.rewards.text import Completion, text

Unit: TypeAlias = Literal["word", "sign"]


def answer_overlap(
    *,
    completions: Sequence[Completion],
    answer: Sequence[str],
    unit: Unit = "word",
    order: Annotated[int, Ge(1), Le(4)] = 4,
) -> list[float | None]:
    """BLEU of the completion against the answer, less for a completion that is longer.

    The n-gram precisions alone, times exp(1 - c / r) for c parts where the answer has r < c.

    Args:
      completions: what the model wrote.
      answer: reference answers; None is returned where there is none.
      unit: what is compared: words, or single signs.
      order: longest n-gram.
    """
    values: list[float | None] = []
    for completion, wanted in zip(completions, answer, strict=True):
        reference, found = parts_of(wanted, unit), parts_of(text(completion), unit)
        if not reference:
            values.append(None)
            continue
        values.append(precision(found, reference, order) * long_penalty(len(found), len(reference)))
    return values


def long_penalty(length: int, reference: int) -> float:
    """exp(1 - c / r) for c > r, else 1: the brevity penalty turned round.

    References:
      Progressive reward shaping, arXiv:2512.07478. Departs: the formula is assumed.

    Example:
      >>> round(long_penalty(12, 8), 4), long_penalty(8, 12)
      (0.6065, 1.0)
    """
    return math.exp(min(0.0, 1.0 - length / reference))


def bleu(candidate: Sequence[str], reference: Sequence[str], order: int = 4) -> float:
    """BLEU of one sentence against one reference, from 0 to 1.

    The geometric mean of the n-gram precisions, with 1 added to both counts for n > 1, times
    exp(1 - r / c) for a candidate shorter than its reference.

    Args:
      candidate: its words.
      reference: its words.
      order: longest n-gram.

    References:
      Papineni et al. 2002; smoothing of Lin and Och 2004 (BLEU+1).

    Example:
      >>> bleu("a b c d".split(), "a b c d".split()), bleu(["x"], ["a"])
      (1.0, 0.0)
      >>> round(bleu("the cat sat".split(), "the cat sat down".split(), 2), 4)  # exp(1 - 4/3)
      0.7165
    """
    if not candidate:
        return 0.0
    short = min(0.0, 1.0 - len(reference) / len(candidate))
    return precision(candidate, reference, order) * math.exp(short)


def precision(candidate: Sequence[str], reference: Sequence[str], order: int = 4) -> float:
    """The geometric mean of the n-gram precisions, with 1 added to both counts for n > 1."""
    if not candidate or not reference:
        return 0.0
    logs = 0.0
    for n in range(1, order + 1):
        grams, known = _grams(candidate, n), _grams(reference, n)
        hits, total = sum((grams & known).values()), sum(grams.values())
        if n > 1:
            hits, total = hits + 1, total + 1
        if hits == 0:
            return 0.0
        logs += math.log(hits / total) / order
    return math.exp(logs)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def parts_of(words: str, unit: Unit) -> list[str]:
    """The words of a text, or its signs."""
    return words.split() if unit == "word" else list(words.strip())
