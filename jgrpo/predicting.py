"""What the policy predicts of its own completions: scored, and made groups of their own.

Letters: P prompts, G completions of a group, N = 2 G P places: of each prompt first its solutions,
then its predictions.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from jgrpo import algo
from jgrpo.collected import Collected
from jgrpo.data.chat import last_message
from jgrpo.rewards.predictions import notion_score, prediction
from jgrpo.rewards.score import Scores
from jgrpo.types import Rollouts

COLUMNS = ("prediction_rate", "prediction_length", "prediction_notion")


def regrouped(collected: Collected) -> Collected:
    """The step with predictions scored by the solutions beside them, in groups of their own.

    A prediction's reward is the mean of `algo.meta_rewards`; the rewards of the run say nothing of
    it. Each prompt stands there twice: its solutions, then its predictions.

    Args:
      collected: groups of 2 G completions.

    References:
      MASA, arXiv:2510.03259; akatigre/MASA-RL `meta_cog.py`, `masa_naive.py`.
    """
    size = collected.rollouts.mask.shape[1] // 2
    lengths = np.asarray(collected.rollouts.mask).sum(-1)[:, :size]
    correct, texts = collected.correct[:, :size], collected.texts
    read = [[prediction(text) for text in group[size:]] for group in texts]
    notions = [
        [
            notion_score(one.notions, last_message(example.prompt), group[:size], right)
            for one in those
        ]
        for example, group, those, right in zip(
            collected.examples, texts, read, correct, strict=True
        )
    ]
    columns = algo.meta_rewards(
        np.array([[one.rate for one in those] for those in read], np.float32),
        np.array([[one.tokens for one in those] for those in read], np.float32),
        np.array(notions, np.float32),
        correct=correct,
        lengths=lengths.astype(np.float32),
    )
    known = np.asarray(collected.valid[:, :size].any(axis=1))
    twice = np.repeat(np.arange(len(texts)), 2)
    return dataclasses.replace(
        collected,
        examples=[collected.examples[p] for p in twice.tolist()],
        prompt_ids=collected.prompt_ids[twice],
        rollouts=_apart(collected.rollouts),
        scores=_scored(collected.scores, np.asarray(columns), known),
        kept=collected.kept[twice],
    )


def _scored(scores: Scores, columns: Float[ndarray, "P G 3"], known: Bool[ndarray, " P"]) -> Scores:
    """The scores with those of predictions, which count where an outcome is known."""
    size, nan = columns.shape[1], np.float32(np.nan)
    predicts = np.tile(np.arange(2 * size) >= size, len(columns))
    further = np.full((len(predicts), len(COLUMNS)), nan, np.float32)
    further[predicts] = columns.reshape(-1, len(COLUMNS))
    total, valid = scores.total.copy(), scores.valid.copy()
    total[predicts] = further[predicts].mean(axis=1)
    valid[predicts] = scores.asked[predicts] & np.repeat(known, size)
    return dataclasses.replace(
        scores,
        names=(*scores.names, *COLUMNS),
        columns=np.concatenate([np.where(predicts[:, None], nan, scores.columns), further], axis=1),
        total=total,
        valid=valid,
    )


def _apart(rollouts: Rollouts) -> Rollouts:
    """Each half of every group as a group of its own, with the prompt and the contexts of both."""

    def halves(path: Sequence[Any], x: ndarray) -> ndarray:
        x, names = np.asarray(x), [getattr(part, "name", "") for part in path]
        of_prompt = names[0] == "prompts" or names[-2:] in (
            ["contexts", "tokens"],
            ["contexts", "mask"],
        )
        return np.repeat(x, 2, axis=0) if of_prompt else x.reshape(2 * len(x), -1, *x.shape[2:])

    return jax.tree_util.tree_map_with_path(halves, rollouts)
