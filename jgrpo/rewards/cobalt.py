"""The reward of Cobalt: the next program of a stored dialogue, compared with the best before it.

A prompt is a dialogue cut behind some turn; the data says in `prev_best` what share of the tests
the best program so far has passed. The completion's program runs in the sandbox of `code_tests`.
"""

import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from jgrpo.rewards.code import code_tests
from jgrpo.rewards.sandbox import SandboxName
from jgrpo.rewards.text import Completion, text

NO_PROGRAM = -1.0
_BAD_FORM = -0.9
_TOO_LONG = -0.01
_BLOCK = re.compile(r"^ {0,3}```[\w+-]*[ \t]*\n.*?^ {0,3}```[ \t]*$", re.DOTALL | re.MULTILINE)
_READ_CHARS = 20_000
_SHORTEST, _TIMES = 32, 8


def cobalt(
    *,
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    tests: Sequence[str | None],
    functions: Sequence[Sequence[str] | None],
    stub: Sequence[str | None],
    prev_best: Sequence[float | int | None],
    think_end: str = "",
    max_tokens: Annotated[int, Ge(1)] = 6144,
    sandbox: SandboxName = "auto",
    time_limit_s: Annotated[float, Gt(0)] = 3.0,
    memory_limit_mb: Annotated[int, Ge(16)] = 256,
) -> list[float | None]:
    """Stepped share of passed tests, with what it gained on the best program before; -1 to 1.

    Args:
      completions: what the model wrote; its program stands in its one code block.
      completion_ids: its tokens.
      tests: Python code with assertions; None is returned where there is none.
      functions: the names that the tests call.
      stub: code that stands before the program; may be "".
      prev_best: field of the data: share of the tests that the best earlier program passed.
      think_end: text that ends the thinking and must stand there once, such as `</think>`; empty:
        there is no thinking.
      max_tokens: longer completions that earned no less than 0 lose a hundredth.
      sandbox: as in `code_tests`.
      time_limit_s: as in `code_tests`.
      memory_limit_mb: as in `code_tests`.
    """
    shares = code_tests(
        completions=completions,
        tests=tests,
        functions=functions,
        stub=stub,
        sandbox=sandbox,
        score="fraction",
        time_limit_s=time_limit_s,
        memory_limit_mb=memory_limit_mb,
    )
    values: list[float | None] = []
    for completion, ids, passed, before in zip(
        completions, completion_ids, shares, prev_best, strict=True
    ):
        words = text(completion)
        if passed is None:
            values.append(None)
            continue
        blocks = len(_BLOCK.findall(words[:_READ_CHARS]))
        if not blocks:
            values.append(NO_PROGRAM)
            continue
        worth = improvement(passed, before or 0.0)
        bad = blocks != 1 or (think_end and words.count(think_end) != 1) or repeats(words)
        form = _BAD_FORM if bad else _TOO_LONG if len(ids) > max_tokens and worth >= 0 else 0.0
        values.append(min(1.0, max(-1.0, worth + form)))
    return values


def improvement(passed: float | int, before: float | int) -> float:
    """The reward for a share of passed tests, given the best share before.

    1 for all tests, .2 from half of them on, 0 for some, -.1 for none. After a program that passed
    some, better ones gain up to .1, and others get -.1 or less.

    References:
      Cobalt, arXiv:2602.03806; authors' code_reward_func_think.py. Departs: none.

    Example:
      >>> pairs = [(1, 0), (0.6, 0.4), (0.6, 0.8), (0, 0.5), (0.5, 0.5)]
      >>> [round(improvement(*pair), 4) for pair in pairs]
      [1.0, 0.2333, -0.125, -0.2, -0.1]
    """
    if passed >= 1:
        return 1.0
    if before > 0 and passed <= before:
        return -0.1 + 0.1 * (passed - before) / before
    worth = 0.2 if passed >= 0.5 else 0.0 if passed > 0 else -0.1
    return worth + (0.1 * (passed - before) / (1 - before) if before > 0 else 0.0)


def repeats(words: str) -> bool:
    """True if 32 signs or more stand eight times in a row in the first 20,000 signs.

    Example:
      >>> repeats("0123456789abcdef" * 16), repeats("0123456789abcdef" * 15)
      (True, False)
    """
    signs = np.array([ord(sign) for sign in words[:_READ_CHARS]], np.int32)
    for period in range(_SHORTEST, len(signs) // _TIMES + 1):
        changes = np.flatnonzero(signs[period:] != signs[:-period])
        ends = np.concatenate([[-1], changes, [len(signs) - period]])
        if np.diff(ends).max() > (_TIMES - 1) * period:
            return True
    return False
