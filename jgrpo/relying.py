"""How much completions rely on what stood around their prompts: log-probs with and without it.

Letters: P prompts, N places of the pool.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, PyTree
from numpy import ndarray

from jgrpo.learner.batch import unweighted
from jgrpo.learner.step import Learner
from jgrpo.places import logps_in_rows
from jgrpo.types import Contexts, Rollouts


def reliance(
    learner: Learner,
    width: int,
    params: PyTree,
    pool: Rollouts,
    contexts: Contexts,
    wanted: Bool[ndarray, "P N"],
) -> Float[ndarray, "P N"]:
    """Mean over a completion's tokens of log pi(y | prompt) - log pi(y | context), in nats.

    Both are the learner's, at the sampling temperature. 0 for completions that are not wanted.

    Args:
      learner: computes log-probs.
      width: places of a row of the learner.
      params: the policy.
      pool: the completions.
      contexts: those that the wanted ones were drawn under.
      wanted: True where it is asked; somewhere it is.
    """
    batch = unweighted(pool, wanted)
    in_context = dataclasses.replace(batch, contexts=contexts)
    with_it, without = (logps_in_rows(learner, params, x, width) for x in (in_context, batch))
    gap = np.where(batch.mask, without - with_it, 0.0)
    return gap.sum(axis=2) / np.maximum(np.asarray(batch.mask).sum(axis=2), 1)
