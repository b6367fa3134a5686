"""Which example the run asks for at each place of its prompt order.

The order is a pure function of a seed and an integer cursor (grain's random access), so it is the
same for any number of processes, and a run that is continued goes on where it stopped.
"""

import grain
import numpy as np
from jaxtyping import Int64


def prompt_ids(
    num_examples: int, seed: int, cursor: int, count: int, shuffle: bool
) -> Int64[np.ndarray, " P"]:
    """Returns the indices of the next examples.

    Args:
      num_examples: examples of the source; each occurs once in an epoch.
      seed: names the order; `run.seed`.
      cursor: prompts taken so far in the run.
      count: prompts to take; they may reach into the next epochs.
      shuffle: use an order that is new in each epoch, instead of that of the source.

    Raises:
      ValueError: if there are no examples, or cursor or count is negative.

    Example:
      >>> prompt_ids(3, 0, 2, 4, False)
      array([2, 0, 1, 2])
    """
    if num_examples < 1 or cursor < 0 or count < 0:
        raise ValueError(
            "num_examples must be at least 1, cursor and count at least 0, "
            f"got {num_examples}, {cursor} and {count}"
        )
    order = grain.MapDataset.range(num_examples)
    if shuffle:
        order = order.shuffle(seed=seed % 2**32)
    order = order.repeat()
    return np.array([order[cursor + i] for i in range(count)], np.int64)
