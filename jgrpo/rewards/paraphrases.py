"""Rewards that compare the completions of paraphrases: of one question, asked in several ways.

The data says which prompts are paraphrases of each other by a field `question`, the same for all of
them, and has them behind each other, so that a step asks them together (`data.shuffle: false`, and
`data.num_prompts_per_step` a multiple of their number). A completion without partners gets no
reward. Letters: R completions of one question. Standard library only.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Annotated, Any, TypeAlias

from annotated_types import Ge, Le

from jgrpo.rewards.overlap import Unit, bleu, parts_of
from jgrpo.rewards.text import Completion, text

Part: TypeAlias = Annotated[float, Ge(0.0), Le(1.0)]


def paraphrase_agreement(
    *,
    completions: Sequence[Completion],
    question: Sequence[Any],
    prompts: Sequence[Any],
    unit: Unit = "word",
    order: Annotated[int, Ge(1), Le(4)] = 4,
) -> list[float | None]:
    """Mean similarity (BLEU) of the completion to all completions of the other paraphrases.

    Args:
      completions: what the model wrote.
      question: field of the data: the same for paraphrases of one question.
      prompts: tell the paraphrases of a question apart.
      unit: what is compared: words, or single signs.
      order: longest n-gram.
    """
    parts = [parts_of(text(completion), unit) for completion in completions]
    asked = [_asked(prompt) for prompt in prompts]
    values: list[float | None] = [None] * len(parts)
    for rows in _together(question):
        of = [asked[row] for row in rows]
        similar = [[bleu(parts[i], parts[j], order) for j in rows] for i in rows]
        for row, value in zip(rows, agreement(similar, of), strict=True):
            values[row] = value
    return values


def information_consistency(
    *,
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    question: Sequence[Any],
    prompts: Sequence[Any],
    helpfulness: Part = 0.5,
    entropy_min: float = 0.0,
    entropy_max: float = 0.0,
    gap_max: float = 0.0,
) -> list[float | None]:
    """How much information the completion holds, and how equal that is over the paraphrases.

    helpfulness (H - min) / (max - min) + (1 - helpfulness) (1 - mean |H - H of the others| / gap),
    H the entropy of the completion's own token counts. The n-th completion of a prompt is compared
    with the n-th ones of its paraphrases.

    Args:
      completions: what the model wrote.
      completion_ids: its tokens.
      question: field of the data: the same for paraphrases of one question.
      prompts: tell the paraphrases of a question apart.
      helpfulness: weight of the first term.
      entropy_min: entropy that is worth nothing, in nats.
      entropy_max: entropy that is worth 1; 0: both bounds are the extremes of the question.
      gap_max: gap between entropies that is worth nothing; 0: the bounds' distance.
    """
    entropies = [entropy(ids) for ids in completion_ids]
    asked = [_asked(prompt) for prompt in prompts]
    values: list[float | None] = [None] * len(completions)
    for rows in _together(question):
        variants: dict[Hashable, list[int]] = {}
        for row in rows:
            variants.setdefault(asked[row], []).append(row)
        depth = min(map(len, variants.values()))
        table = [found[:depth] for found in variants.values()]
        if len(table) < 2:
            continue
        low, high = entropy_min, entropy_max
        if not high:
            low = min(entropies[row] for line in table for row in line)
            high = max(entropies[row] for line in table for row in line)
        found = consistency(
            [[entropies[row] for row in line] for line in table],
            (low, high),
            gap_max or high - low,
            helpfulness,
        )
        for line, worth in zip(table, found, strict=True):
            for row, value in zip(line, worth, strict=True):
                values[row] = value
    return values


def agreement(
    similar: Sequence[Sequence[float | int]], of: Sequence[Hashable]
) -> list[float | None]:
    """Mean similarity of each completion to those of the other paraphrases; None without others.

    Args:
      similar: similarity of each completion to each, row by row.
      of: the paraphrase of each completion.

    References:
      PS-GRPO (Con-RAG), arXiv:2510.04392. Departs: none.

    Example:
      >>> table = [[1, .2, .6, .4], [.2, 1, .3, .5], [.6, .3, 1, .1], [.4, .5, .1, 1]]
      >>> [round(value, 2) for value in agreement(table, "aabb")]
      [0.5, 0.4, 0.45, 0.45]
    """
    values: list[float | None] = []
    for line, own in zip(similar, of, strict=True):
        others = [value for value, other in zip(line, of, strict=True) if other != own]
        values.append(math.fsum(others) / len(others) if others else None)
    return values


def consistency(
    entropies: Sequence[Sequence[float | int]],
    bounds: tuple[float, float],
    gap: float,
    helpfulness: float = 0.5,
) -> list[list[float]]:
    """The reward of each completion, from the entropies of K variants of a question, g of each.

    Args:
      entropies: K lines of g numbers, in nats.
      bounds: entropies that are worth 0 and 1; equal ones give 0.
      gap: gap that is worth nothing; 0 counts any as none.
      helpfulness: weight of the first term, the other's is the rest.

    References:
      arXiv:2512.12858. Departs: pairing by place in the group and equal weights are assumed.

    Example:
      >>> rows = consistency([[1, 1.4], [1.2, 1.1], [.9, 1.3]], (0.8, 1.6), 0.8)
      >>> [[round(value, 3) for value in row] for row in rows]
      [[0.531, 0.75], [0.594, 0.531], [0.438, 0.719]]
    """
    low, high = bounds
    width, count = high - low, len(entropies)
    found: list[list[float]] = []
    for k, line in enumerate(entropies):
        row = []
        for place, value in enumerate(line):
            helps = (value - low) / width if width > 0 else 0.0
            apart = [abs(value - entropies[j][place]) for j in range(count) if j != k]
            unfair = math.fsum(apart) / len(apart) / gap if apart and gap > 0 else 0.0
            row.append(helpfulness * helps + (1.0 - helpfulness) * (1.0 - unfair))
        found.append(row)
    return found


def entropy(items: Sequence[Hashable]) -> float:
    """Entropy of the counts of the items, in nats; 0 for none.

    Example:
      >>> round(entropy("a b a c".split()), 4)
      1.0397
    """
    total = len(items)
    counts = Counter(items).values()
    return -math.fsum(n / total * math.log(n / total) for n in counts) if total else 0.0


def _asked(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _together(question: Sequence[Any]) -> list[list[int]]:
    """The rows of each question; rows that name none are in none."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(question):
        if name is not None:
            found.setdefault(str(name), []).append(row)
    return list(found.values())
