"""The buffer of predictions that are imitated: what `TrainState` keeps of it, exactly.

First come, first trained. Letters: N places of the buffer, T tokens.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int
from numpy import ndarray

from jgrpo.types import AnyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """Predictions that wait, in the first `count` places; zeros in the others.

    Attributes:
      owner: number in the data of the prompt that each is about.
      tokens: token ids.
      lengths: number of tokens.
      count: how many wait.
    """

    owner: Int[AnyArray, " N"]
    tokens: Int[AnyArray, "N T"]
    lengths: Int[AnyArray, " N"]
    count: Int[AnyArray, ""]


def fresh(prompts: int, width: int) -> Experts:
    """An empty buffer: of a batch less one that wait, and what one step adds to them.

    Args:
      prompts: of a step; as many predictions are a batch, and at most as many come in a step.
      width: longest completion in tokens.
    """
    places = 2 * prompts
    return Experts(
        owner=np.zeros(places, np.int32),
        tokens=np.zeros((places, width), np.int32),
        lengths=np.zeros(places, np.int32),
        count=np.zeros((), np.int32),
    )


def batch_of(waiting: Experts) -> int:
    """Predictions that are trained at once: as many as have come first, or none; see `fresh`."""
    batch = len(np.asarray(waiting.owner)) // 2
    return batch if int(waiting.count) >= batch else 0


def after(
    waiting: Experts, trained: int, owners: Sequence[int], rows: Sequence[Sequence[int]]
) -> Experts:
    """The buffer without its first predictions, and with new ones behind the others.

    Args:
      waiting: before.
      trained: how many leave.
      owners: numbers of the prompts of the new ones.
      rows: their tokens.
    """
    kept = slice(trained, int(waiting.count))
    old = [np.asarray(x)[kept] for x in (waiting.owner, waiting.tokens, waiting.lengths)]
    new = fresh(len(np.asarray(waiting.owner)) // 2, np.asarray(waiting.tokens).shape[1])
    owner, tokens, lengths = (np.asarray(x) for x in (new.owner, new.tokens, new.lengths))
    begin, count = len(old[0]), len(old[0]) + len(rows)
    for x, before in zip((owner, tokens, lengths), old, strict=True):
        x[:begin] = before
    owner[begin:count], lengths[begin:count] = owners, [len(row) for row in rows]
    for place, row in enumerate(rows, start=begin):
        tokens[place, : len(row)] = row
    return dataclasses.replace(new, count=np.asarray(count, np.int32))


def first(waiting: Experts, number: int) -> list[tuple[int, Int[ndarray, "..."]]]:
    """The predictions that have waited longest: the prompt of each, and its tokens."""
    owner, tokens, lengths = (
        np.asarray(x) for x in (waiting.owner, waiting.tokens, waiting.lengths)
    )
    return [(int(owner[i]), tokens[i, : lengths[i]]) for i in range(number)]
