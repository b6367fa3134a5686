"""Predictions that a policy makes about its own completions, read from their text (MASA)."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

ATTEMPTS = 8.0
"""Attempts that a predicted pass rate is told of."""
_MOST = 1e9
_OBJECT = re.compile(r"\{[^{}]*\}")


class Prediction(NamedTuple):
    """What a completion predicts.

    Attributes:
      rate: share of right solutions; nan if it could not be read.
      tokens: length of a solution; nan if it could not be read.
      notions: what right solutions speak of.
    """

    rate: float
    tokens: float
    notions: tuple[str, ...]


def prediction(text: str) -> Prediction:
    """Reads the first JSON object of a text: `math_notion`, `solution_length`, `pass_rate`.

    What is missing, no whole number, or out of range is nan; notions are made lower case and
    singular.

    Example:
      >>> prediction('so: {"math_notion": ["Primes", "gcd"], "pass_rate": 6}')
      Prediction(rate=0.75, tokens=nan, notions=('prime', 'gcd'))
    """
    found = _OBJECT.search(text)
    try:
        said = json.loads(found[0]) if found else {}
    except (ValueError, RecursionError):
        said = {}
    notions = said.get("math_notion")
    words = [w for w in notions if isinstance(w, str)] if isinstance(notions, list) else []
    return Prediction(
        rate=_whole(said.get("pass_rate"), ATTEMPTS) / ATTEMPTS,
        tokens=_whole(said.get("solution_length"), _MOST),
        notions=tuple(_singular(word.lower().strip()) for word in words if word.strip()),
    )


def corrected(text: str, rate: float, tokens: float) -> str:
    """The text with what was found in the place of what its prediction says, both in whole numbers.

    Args:
      text: has a prediction that can be read.
      rate: share of right solutions; it is told of `ATTEMPTS`.
      tokens: length of right solutions.

    Example:
      >>> corrected('so: {"math_notion": ["gcd"], "pass_rate": 6}.', 0.5, 119.5)
      'so: {"math_notion": ["gcd"], "pass_rate": 4, "solution_length": 120}.'
    """
    found = _OBJECT.search(text)
    assert found is not None
    said = json.loads(found[0]) | {"pass_rate": round(ATTEMPTS * rate)}
    told = json.dumps(said | {"solution_length": round(tokens)}, ensure_ascii=False)
    told = told.encode(errors="replace").decode()  # half of a surrogate pair is no text
    return text[: found.start()] + told + text[found.end() :]


def notion_score(
    notions: Sequence[str], problem: str, solutions: Sequence[str], correct: Bool[ndarray, " G"]
) -> float:
    """Share of the notions that more right than wrong solutions speak of; 0 without any.

    Args:
      notions: of one prediction, lower case; those that stand in the problem are left out.
      problem: the prompt.
      solutions: completions of it.
      correct: their outcomes.

    Example:
      >>> texts = ["by vieta", "vieta, modulus", "modulus", "modulus"]
      >>> notion_score(
      ...     ["vieta", "modulus", "triangle"], "A triangle", texts, np.arange(4) < 2)
      0.5
    """
    new = [notion for notion in notions if notion not in problem.lower()]
    sign = np.where(correct, 1, -1)
    said = [sign[[notion in text.lower() for text in solutions]].sum() > 0 for notion in new]
    return float(np.mean(said)) if new else 0.0


def mean_predictions(texts: Sequence[Sequence[str]]) -> Float[ndarray, "P 2"]:
    """Mean predicted rate and length of the texts of each prompt that can be read; nan: of none."""
    said = np.array([[prediction(text)[:2] for text in those] for those in texts])
    known = ~np.isnan(said)
    total = np.where(known, said, 0.0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _whole(value: Any, most: float) -> float:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and 0 <= value <= most else float("nan")
