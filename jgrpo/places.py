"""Unequal groups for a learner that wants equal ones: a long group goes into several rows.

An update is a sum over tokens whose weights and advantages are fixed, so it does not matter in
which row a completion stands, if the prompt that it is trained under stands before it. Letters: P
prompts, G places of a group, Q rows, C places of a row, T tokens.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int, PyTree, Shaped
from numpy import ndarray

from jgrpo.learner.batch import rearranged
from jgrpo.learner.step import Learner
from jgrpo.parallel.hosts import fetch
from jgrpo.types import AnyArray, Batch, Contexts, Prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the completions of unequal groups stand in equal rows.

    Attributes:
      prompt: the prompt of each row.
      context: which of its group's contexts stands in the prompt's place, from 1; 0: none.
      place: number of the completion at each place, group by group; -1 where none stands.
      shape: prompts and places of the groups.
    """

    prompt: Int[ndarray, " Q"]
    context: Int[ndarray, " Q"]
    place: Int[ndarray, "Q C"]
    shape: tuple[int, int]

    def apart(self, batch: Batch) -> Batch:
        """The batch in equal rows; empty places have no trained token."""
        rows = rearranged(dataclasses.replace(batch, contexts=None), self.prompt, self.place)
        if batch.contexts is None:
            return rows
        return dataclasses.replace(
            rows, prompts=_in_context(rows.prompts, batch.contexts, self.prompt, self.context)
        )

    def together(self, x: Shaped[AnyArray, "Q C T"]) -> Shaped[ndarray, "P G T"]:
        """What was computed in rows, back in groups; 0 where nothing stands in them."""
        values = np.asarray(x)
        groups = np.zeros((self.shape[0] * self.shape[1], values.shape[2]), values.dtype)
        there = self.place >= 0
        groups[self.place[there]] = values[there]
        return groups.reshape(*self.shape, values.shape[2])


def rows_of(batch: Batch, width: int, *, alone: bool = False) -> Rows:
    """Deals the completions that have a trained token into rows of so many places.

    There are 1, 2, 4, ... times as many rows as prompts, so that few shapes are compiled and rows
    divide over devices as prompts do. If groups hold `width` completions on average, twice as many
    are always enough.

    Args:
      batch: groups of any size.
      width: places of a row.
      alone: let every completion stand in a row alone, and make a row for every place of a group,
        so that there are always as many.
    """
    width = 1 if alone else width
    present: Bool[ndarray, "P G"] = np.asarray(np.asarray(batch.mask).any(axis=-1))
    under = np.zeros(present.shape, np.int64)
    if batch.contexts is not None:
        under = np.asarray(batch.contexts.trained)
    prompt, context, rows = [], [], []
    for p, members in enumerate(present):
        for c in np.unique(under[p][members]):
            numbers = np.flatnonzero(members & (under[p] == c)) + p * present.shape[1]
            for begin in range(0, len(numbers), width):
                row = np.full(width, -1)
                part = numbers[begin : begin + width]
                row[: len(part)] = part
                prompt.append(p)
                context.append(int(c))
                rows.append(row)
    number = present.size if alone else len(present)
    while number < len(rows):
        number *= 2
    spare = number - len(rows)
    return Rows(
        prompt=np.array(prompt + [0] * spare, np.int64),
        context=np.array(context + [0] * spare, np.int64),
        place=np.array(rows + [np.full(width, -1)] * spare, np.int64).reshape(number, width),
        shape=(present.shape[0], present.shape[1]),
    )


def logps_in_rows(
    learner: Learner, params: PyTree, batch: Batch, width: int, *, alone: bool = False
) -> Float32[ndarray, "P G T"]:
    """Log-probs of the trained tokens of unequal groups, in nats; 0 elsewhere.

    Args:
      learner: computes them.
      params: the weights.
      batch: groups of any size.
      width: places of a row.
      alone: as in `rows_of`.
    """
    rows = rows_of(batch, width, alone=alone)
    return rows.together(fetch(learner.logps(params, rows.apart(batch))))


def _in_context(
    prompts: Prompts,
    contexts: Contexts,
    prompt: Int[ndarray, " Q"],
    context: Int[ndarray, " Q"],
) -> Prompts:
    """The prompts of rows, with those contexts in their place that are wanted."""
    width = max(prompts.tokens.shape[-1], contexts.tokens.shape[-1])

    def wide(x: AnyArray) -> ndarray:
        padding = [(0, 0)] * (x.ndim - 1) + [(width - x.shape[-1], 0)]
        return np.pad(np.asarray(x), padding)

    there = (context > 0)[:, None]
    number = np.maximum(context - 1, 0)
    tokens, mask = (
        np.where(there, wide(of_group)[prompt, number], wide(own))
        for of_group, own in ((contexts.tokens, prompts.tokens), (contexts.mask, prompts.mask))
    )
    return Prompts(uid=prompts.uid, tokens=tokens, mask=mask)
