"""What experts give the answers of a sub-agent: reward functions, asked with the call as prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from jgrpo.rewards.reward import Reward
from jgrpo.rewards.score import reward_columns, score
from jgrpo.types import Example


class Answer(NamedTuple):
    """An answer to a call.

    Attributes:
      example: the prompt of the completion that called.
      call: what was asked.
      text: all that the sub-agent has written.
      ids: the same as tokens.
    """

    example: Example
    call: str
    text: str
    ids: Sequence[int]


def expert_scores(experts: Sequence[Reward], answers: Sequence[Answer]) -> Float[ndarray, " A"]:
    """The weighted sum of what the experts give each answer; nan where they give nothing.

    An expert gets the call as prompt, and the further fields of the prompt that led to it.

    Args:
      experts: the reward functions; if there are none, every answer gets 0.
      answers: what they judge.

    Raises:
      ValueError: naming the expert, as `score`.
      RewardError: if the worker processes cannot go on.
    """
    if not experts or not answers:
        return np.zeros(len(answers))
    scores = score(
        experts,
        prompts=[answer.call for answer in answers],
        completions=[answer.text for answer in answers],
        completion_ids=[answer.ids for answer in answers],
        columns=reward_columns([answer.example for answer in answers], 1),
    )
    return np.where(scores.valid, scores.total, np.nan).astype(np.float64)
