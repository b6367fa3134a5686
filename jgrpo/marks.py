"""Parts and kinds of completions, told by a text that stands in them.

Letters: P prompts, G completions per prompt, T completion tokens.
"""

import re

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray
from transformers import PreTrainedTokenizerBase

from jgrpo.types import Rollouts


def segments(
    tokenizer: PreTrainedTokenizerBase, rollouts: Rollouts, mark: str
) -> Int32[ndarray, "P G T"]:
    """Numbers the segments of each completion: a segment ends with the token that ends the mark.

    Args:
      tokenizer: decodes the tokens, one at a time.
      rollouts: the completions.
      mark: what ends a segment, such as a newline.

    Returns:
      Number of the segment of each token, from 0; -1 where there is no token.
    """
    tokens, mask = np.asarray(rollouts.tokens), np.asarray(rollouts.mask)
    texts = {int(i): str(tokenizer.decode([int(i)])) for i in np.unique(tokens[mask])}
    found = np.full(tokens.shape, -1, np.int32)
    for place in np.ndindex(*tokens.shape[:2]):
        written, number = "", 0
        for t in np.flatnonzero(mask[place]):
            found[(*place, t)] = number
            written += texts[int(tokens[(*place, t)])]
            ended = written.count(mark)
            number += ended
            # Only what could be the beginning of a mark is kept.
            written = written.rpartition(mark)[2] if ended else written[-len(mark) :]
    return found


def strata(completions: list[list[str]], mark: str) -> Int32[ndarray, "P G"]:
    """How often the mark stands in each completion.

    Args:
      completions: by group.
      mark: what is counted, such as the call of a tool.
    """
    return np.array([[text.count(mark) for text in group] for group in completions], np.int32)


def in_form(completions: list[list[str]], pattern: str | None) -> Bool[ndarray, "P G"]:
    """True where the whole completion has the task's form; everywhere, if the task has none.

    Args:
      completions: by group.
      pattern: regular expression of the form.
    """
    if pattern is None:
        return np.ones((len(completions), len(completions[0])), bool)
    form = re.compile(pattern)
    return np.array([[form.fullmatch(text) is not None for text in group] for group in completions])
