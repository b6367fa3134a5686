"""The memory of guidance: what `TrainState` keeps of it, exactly.

Accuracies are kept as counts, so that the schedule's float64 arithmetic is the same after a resume
as without one.
"""

import numpy as np
from jaxtyping import PyTree

from jgrpo.algo.methods import Method
from jgrpo.algo.plans import Guidance, next_guidance

_KEPT = 2


def fresh(method: Method) -> PyTree:
    """The state before the first step."""
    zeros = np.zeros(_KEPT, np.int32)
    return {"tokens": np.int32(method.guidance_tokens), "correct": zeros, "completions": zeros}


def tokens_of(state: PyTree) -> int:
    """Tokens of guidance in the coming step."""
    return int(state["tokens"])


def observed(
    method: Method, state: PyTree, correct: int, completions: int, step: int, steps: int
) -> PyTree:
    """The state after a step.

    Args:
      method: the method.
      state: from `fresh` or this function.
      correct: correct completions of the step.
      completions: its completions, guided ones among them.
      step: its number, from 1.
      steps: steps of the run.
    """
    kept = [
        (int(c), int(n)) for c, n in zip(state["correct"], state["completions"], strict=True) if n
    ]
    guidance = Guidance(tokens=tokens_of(state), accuracies=tuple(c / n for c, n in kept))
    after = next_guidance(method, guidance, correct / completions, step, steps)
    seen = [*kept, (correct, completions)]
    tail = seen[len(seen) - len(after.accuracies) :]  # the schedule keeps a tail of accuracies
    counts = np.array([*tail, *[(0, 0)] * (_KEPT - len(tail))], np.int32)
    return {
        "tokens": np.int32(after.tokens),
        "correct": counts[:, 0],
        "completions": counts[:, 1],
    }
