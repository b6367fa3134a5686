"""What a run remembers of earlier completions: how far the policy has moved since it drew them.

Letters: N prompts of the task, P prompts of a step, G completions per prompt, T tokens.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32, PyTree
from numpy import ndarray

from jgrpo.learner.step import Learner
from jgrpo.parallel.hosts import fetch
from jgrpo.types import AnyArray, Batch, Prompts

_MAX_BYTES = 2**31


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Previous:
    """The newest completion of every prompt.

    Attributes:
      tokens: its token ids.
      logp: log-probs (nats) at which they were drawn.
      lengths: number of its tokens; 0 for a prompt that has not been asked.
    """

    tokens: Int32[AnyArray, "N T"]
    logp: Float32[AnyArray, "N T"]
    lengths: Int32[AnyArray, " N"]


def nothing(num_prompts: int, width: int) -> Previous:
    """A memory without completions.

    Args:
      num_prompts: prompts of the task.
      width: longest completion in tokens.

    Raises:
      ValueError: if the memory would take more than 2 GiB.
    """
    if 8 * num_prompts * width > _MAX_BYTES:
        raise ValueError(
            f"data.task: {num_prompts:,} prompts x {width} tokens are too many to remember the "
            "completion of each, as this method does; it is for data whose prompts come again"
        )
    return Previous(
        tokens=np.zeros((num_prompts, width), np.int32),
        logp=np.zeros((num_prompts, width), np.float32),
        lengths=np.zeros(num_prompts, np.int32),
    )


def drift(
    previous: Previous,
    prompt_ids: Int[ndarray, " P"],
    prompts: Prompts,
    learner: Learner,
    params: PyTree,
) -> Float32[ndarray, " P"]:
    """Mean |log-prob then - log-prob now| over the tokens of each prompt's previous completion.

    Args:
      previous: the memory.
      prompt_ids: the prompts of the step.
      prompts: the same as tokens.
      learner: computes log-probs.
      params: the weights now.

    Returns:
      In nats; 0 for a prompt that has not been asked before.
    """
    then = jax.tree.map(lambda x: np.asarray(x)[prompt_ids], previous)
    mask = np.arange(then.tokens.shape[1]) < then.lengths[:, None]
    zeros = np.zeros_like(then.logp)[:, None]
    batch = Batch(
        prompts=prompts,
        tokens=then.tokens[:, None],
        mask=mask[:, None],
        weights=zeros,
        advantages=zeros,
        old_logp=then.logp[:, None],
    )
    now = fetch(learner.logps(params, batch))[:, 0]
    gap = np.where(mask, np.abs(now - then.logp), 0.0).sum(axis=1)
    return (gap / np.maximum(then.lengths, 1)).astype(np.float32)


def remember(previous: Previous, prompt_ids: Int[ndarray, " P"], batch: Batch) -> Previous:
    """The memory after a step: of each prompt asked, the first completion of its group.

    Args:
      previous: the memory before.
      prompt_ids: the prompts of the step.
      batch: their completions.
    """
    tokens, logp, lengths = (
        np.array(x) for x in (previous.tokens, previous.logp, previous.lengths)
    )
    mask = np.asarray(batch.mask)[:, 0]
    width = mask.shape[1]
    for kept, values in ((tokens, batch.tokens), (logp, batch.old_logp)):
        kept[prompt_ids] = 0
        kept[prompt_ids, :width] = np.where(mask, np.asarray(values)[:, 0], 0)
    lengths[prompt_ids] = mask.sum(axis=1)
    return Previous(tokens=tokens, logp=logp, lengths=lengths)
