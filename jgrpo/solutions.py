"""The data's worked solutions as tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from jgrpo.buckets import bucket
from jgrpo.models.load import LoadedModel
from jgrpo.types import Example


def solution_ids(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, of: str
) -> list[list[int]]:
    """The tokens of each example's solution, without an EOS.

    Args:
      tokenizer: of the model.
      examples: have solutions.
      of: who asks for them, for the error.

    Raises:
      ValueError: if an example has none.
    """
    for example in examples:
        if example.solution is None:
            prompt = str(example.prompt)[:80]
            raise ValueError(f"{of} needs worked solutions, the prompt {prompt!r} has none")
    return [
        tokenizer(example.solution, add_special_tokens=False)["input_ids"] for example in examples
    ]


def whole_solutions(
    model: LoadedModel, examples: Sequence[Example], *, limit: int, of: str
) -> dict[str, Any]:
    """The solutions as completions, each the one member of its group; fields of `Rollouts`.

    Args:
      model: for tokenizer and token ids.
      examples: have solutions.
      limit: most tokens of a solution, its EOS included.
      of: who asks for them, for errors.

    Raises:
      ValueError: if an example has no solution, or too long a one.
    """
    rows = [[*row, model.eos_ids[0]] for row in solution_ids(model.tokenizer, examples, of=of)]
    for row, example in zip(rows, examples, strict=True):
        if len(row) > limit:
            raise ValueError(
                f"{of}: a worked solution has {len(row)} tokens, more than "
                f"rollout.max_completion_tokens = {limit}: {str(example.solution)[:80]!r}"
            )
    width = min(bucket(max(map(len, rows))), bucket(limit))
    tokens = np.full((len(rows), 1, width), model.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for tokens_T, mask_T, row in zip(tokens[:, 0], mask[:, 0], rows, strict=True):
        tokens_T[: len(row)] = row
        mask_T[: len(row)] = True
    return {
        "tokens": tokens,
        "mask": mask,
        "behavior_logp": np.zeros(tokens.shape, np.float32),
        "finished": np.ones(tokens.shape[:2], bool),
    }
