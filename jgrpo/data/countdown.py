"""The task `countdown`: reach a target from a few numbers, each used at most once.

Every problem has a solution, since the target is worked out from the numbers. Whether an expression
solves a problem is decided by the reward `countdown` (`rewards/countdown.py`), not here.
"""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Le

from jgrpo.data.draws import Family, below
from jgrpo.types import Example, Message

PLAIN_PATTERN = r"([0-9]+[-+*/][0-9]+=[0-9]+;)*#[-+*/()0-9]+"
"""A well-formed completion in the style `plain`."""
CHAT_PATTERN = r"(?s).*<answer>[-+*/()=0-9 ]+</answer>\s*"
"""A well-formed completion in the style `chat`."""

_MAX_VALUE = 999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the task.

    Attributes:
      style: `plain` (`3,25,7=82?`, the expression stands after `#`) or `chat` (a question in
        words, the expression stands in `<answer>` tags).
      num_numbers: numbers given.
      max_number: numbers are 1 to this.
      max_target: targets are 1 to this.
    """

    style: Literal["plain", "chat"] = "plain"
    num_numbers: Annotated[int, Ge(2), Le(6)] = 4
    max_number: Annotated[int, Ge(5), Le(100)] = 50
    max_target: Annotated[int, Ge(10), Le(_MAX_VALUE)] = 100


class Term(NamedTuple):
    """A value and the expression that it came from."""

    value: int
    text: str


class Countdown(NamedTuple):
    """A problem with one of its solutions."""

    numbers: tuple[int, ...]
    target: int
    steps: tuple[str, ...]
    expression: str


@cache
def family(options: Options) -> Family[Countdown]:
    """Returns the problems that the options allow."""

    def propose(draws: Iterator[int]) -> Countdown | None:
        return _propose(options, draws)

    def write(problem: Countdown, draws: Iterator[int]) -> Example:
        return _write(options, problem)

    return Family(name="countdown", propose=propose, key=_key, write=write)


def _key(problem: Countdown) -> str:
    return f"{sorted(problem.numbers)} {problem.target}"


def _propose(options: Options, draws: Iterator[int]) -> Countdown | None:
    numbers = tuple(1 + below(draws, options.max_number) for _ in range(options.num_numbers))
    terms = [Term(number, str(number)) for number in numbers]
    num_steps = 1 + below(draws, options.num_numbers - 1)
    reached = terms.pop(below(draws, len(terms)))
    steps = []
    for _ in range(num_steps):
        small, large = sorted((reached, terms.pop(below(draws, len(terms)))))
        signs = _signs(large.value, small.value)
        sign = signs[below(draws, len(signs))]
        value = _apply(large.value, sign, small.value)
        if not 0 < value <= _MAX_VALUE:
            return None
        steps.append(f"{large.value}{sign}{small.value}={value}")
        reached = Term(value, f"{_bracket(large.text)}{sign}{_bracket(small.text)}")
    if reached.value > options.max_target or reached.value in numbers:
        return None
    return Countdown(numbers, reached.value, tuple(steps), reached.text)


def _signs(large: int, small: int) -> str:
    return "+-" + ("*" if small > 1 else "") + ("/" if small > 1 and large % small == 0 else "")


def _apply(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]


def _bracket(text: str) -> str:
    return text if text.isdigit() else f"({text})"


def _write(options: Options, problem: Countdown) -> Example:
    listed = ",".join(map(str, problem.numbers))
    if options.style == "plain":
        prompt: str | list[Message] = f"{listed}={problem.target}?"
        solution = "".join(f"{step};" for step in problem.steps) + f"#{problem.expression}"
    else:
        question = (
            f"Write an expression that equals {problem.target}, using each of the numbers "
            f"{listed.replace(',', ', ')} at most once and the operations + - * /. "
            "End with the expression alone in <answer> </answer> tags."
        )
        prompt = [{"role": "user", "content": question}]
        solution = "\n".join(problem.steps) + f"\n<answer>{problem.expression}</answer>"
    return Example(
        prompt=prompt,
        answer=str(problem.target),
        solution=solution,
        columns={
            "numbers": list(problem.numbers),
            "target": problem.target,
            "num_steps": len(problem.steps),
            "difficulty": len(problem.steps),
        },
    )
