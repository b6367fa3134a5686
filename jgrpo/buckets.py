"""The short list of widths that arrays are padded to, so that few shapes are ever compiled."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

_STEP = 16


def bucket(length: int, step: int = _STEP) -> int:
    """Returns the smallest width of the list that holds `length` tokens.

    The list is step x (1, 2, 3, 4, 6, 8, 12, 16, ...): at most a third of a wide row is padding.

    Args:
      length: tokens to hold; 0 counts as 1.
      step: the narrowest width.

    Example:
      >>> [bucket(n) for n in (1, 16, 17, 65, 100, 129)]
      [16, 16, 32, 96, 128, 192]
    """
    units = max(1, -(-length // step))
    if units <= 2:
        return units * step
    power = 1 << ((units - 1).bit_length() - 1)
    return step * (power * 3 // 2 if units <= power * 3 // 2 else power * 2)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, and at least 1."""
    return 1 << max(0, number - 1).bit_length()


def left_padded(
    rows: Sequence[Sequence[int]], width: int, pad_id: int = 0
) -> tuple[Int[ndarray, "R W"], Bool[ndarray, "R W"]]:
    """Rows of token ids that all end at the right, and True at their ids.

    Args:
      rows: none longer than `width`.
      width: of what is returned.
      pad_id: stands before them.
    """
    tokens, mask = np.full((len(rows), width), pad_id, np.int32), np.zeros((len(rows), width), bool)
    for index, row in enumerate(rows):
        tokens[index, width - len(row) :] = row
        mask[index, width - len(row) :] = True
    return tokens, mask
