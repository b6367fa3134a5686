"""The task `chain`: sums and differences of a few numbers, worked out one step at a time.

`61+72-79=?` is answered `61+72=133;133-79=54;#54`. Numbers are 1 to 99 and the running value stays
in 0 to 199. A reference solution may be careless: it then works column by column and forgets every
carry and borrow, all the way. A step may be followed by a redundant check of itself in brackets,
`61+72=133(133-72=61);`, done with the same care as the rest of the solution. So a model that was
taught on such solutions knows the skill, is careless and is wordy: something is left to sharpen.

The task `overthink` is the same with solutions that also work everything out again, up to twice,
before they answer: `61+72=133;133-79=54;61+72=133;133-79=54;#54`. A model taught on these thinks
more than it needs, which is what methods that weigh length are for.
"""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Literal, NamedTuple, TypeAlias

from annotated_types import Ge, Le

from jgrpo.data.draws import Family, below, chance
from jgrpo.types import Example

PATTERN = r"([0-9]+[+-][0-9]+=[0-9]+(\([0-9]+[+-][0-9]+=[0-9]+\))?;)+#[0-9]+"
"""What a well-formed completion looks like."""

MAX_TERM = 99
MAX_VALUE = 199
_COLUMNS = (1, 10, 100)

Terms: TypeAlias = Annotated[int, Ge(2), Le(5)]
Probability: TypeAlias = Annotated[float, Ge(0.0), Le(1.0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the task.

    Attributes:
      min_terms: fewest numbers of a problem.
      max_terms: most numbers of a problem.
      carries: keep any problem, those with a carry or borrow in some step, or in all of them.
      careless: probability that a reference solution forgets its carries and borrows.
      recheck: probability that a step of a reference solution is followed by a check of it.
      rubric: give every problem criteria for `judge_rubric` with `judge: rules`: its steps, and its
        answer, which weighs as much as all of them.
      repeats: most times that a reference solution is worked out again before its answer; from
        none to this, equally often.
    """

    min_terms: Terms = 3
    max_terms: Terms = 3
    carries: Literal["any", "some", "all"] = "any"
    careless: Probability = 0.0
    recheck: Probability = 0.0
    rubric: bool = False
    repeats: Annotated[int, Ge(0), Le(4)] = 0

    def __post_init__(self) -> None:
        if self.min_terms > self.max_terms:
            raise ValueError(f"min_terms must be at most max_terms, got {self.min_terms}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverthinkOptions(Options):
    """Settings of the task `overthink`: those of `chain`, with other defaults."""

    recheck: Probability = 0.3
    repeats: Annotated[int, Ge(0), Le(4)] = 2


class Step(NamedTuple):
    """One sum or difference: `sign` is +1 or -1, `carries` counts its carries or borrows."""

    sign: int
    term: int
    carries: int


class Chain(NamedTuple):
    """A problem: the first number and what is done to it."""

    first: int
    steps: tuple[Step, ...]


@cache
def family(options: Options) -> Family[Chain]:
    """Returns the problems that the options allow."""

    def propose(draws: Iterator[int]) -> Chain | None:
        return _propose(options, draws)

    def write(chain: Chain, draws: Iterator[int]) -> Example:
        return _write(options, chain, draws)

    return Family(name="chain", propose=propose, key=_question, write=write)


def without_carries(value: int, sign: int, term: int) -> int:
    """Adds or subtracts column by column, modulo 10, and forgets every carry and borrow.

    Example:
      >>> without_carries(61, 1, 72), without_carries(133, -1, 79)
      (33, 164)
    """
    return sum(unit * ((value // unit + sign * (term // unit)) % 10) for unit in _COLUMNS)


def count_carries(value: int, sign: int, term: int) -> int:
    """Counts the columns out of which a sum carries, or into which a difference borrows.

    Example:
      >>> count_carries(61, 1, 72), count_carries(95, 1, 17), count_carries(133, -1, 79)
      (1, 2, 2)
    """
    if sign > 0:
        return sum(value % (10 * u) + term % (10 * u) >= 10 * u for u in _COLUMNS)
    return sum(value % (10 * u) < term % (10 * u) for u in _COLUMNS)


@cache
def _possible_steps(value: int, need_carry: bool) -> tuple[Step, ...]:
    steps = (
        Step(sign, term, count_carries(value, sign, term))
        for sign in (1, -1)
        for term in range(1, MAX_TERM + 1)
        if 0 <= value + sign * term <= MAX_VALUE
    )
    return tuple(step for step in steps if step.carries or not need_carry)


def _propose(options: Options, draws: Iterator[int]) -> Chain | None:
    num_terms = options.min_terms + below(draws, options.max_terms - options.min_terms + 1)
    first = value = 1 + below(draws, MAX_TERM)
    steps: list[Step] = []
    for _ in range(num_terms - 1):
        possible = _possible_steps(value, options.carries == "all")
        if not possible:
            return None
        step = possible[below(draws, len(possible))]
        steps.append(step)
        value += step.sign * step.term
    if options.carries == "some" and not any(step.carries for step in steps):
        return None
    return Chain(first, tuple(steps))


def _question(chain: Chain) -> str:
    return str(chain.first) + "".join(f"{_sign(step.sign)}{step.term}" for step in chain.steps)


def _write(options: Options, chain: Chain, draws: Iterator[int]) -> Example:
    careless = chance(draws, options.careless)
    rechecks = [chance(draws, options.recheck) for _ in chain.steps]
    # Drawn only where it is asked for: the problems behind this one depend on the draws before.
    repeats = below(draws, options.repeats + 1) if options.repeats else 0
    num_carries = sum(step.carries for step in chain.steps)
    answer = chain.first + sum(step.sign * step.term for step in chain.steps)
    return Example(
        prompt=f"{_question(chain)}=?",
        answer=str(answer),
        solution=_solution(chain, careless, rechecks, repeats),
        columns={
            "num_terms": len(chain.steps) + 1,
            "num_carries": num_carries,
            "difficulty": len(chain.steps) + num_carries,
            **({"rubric": _rubric(chain)} if options.rubric else {}),
        },
    )


def _rubric(chain: Chain) -> list[dict[str, str | int]]:
    value, criteria = chain.first, list[dict[str, str | int]]()
    for sign, term, _ in chain.steps:
        line = f"{value}{_sign(sign)}{term}={value + sign * term}"
        criteria.append({"text": f"contains: {line}", "weight": 1})
        value += sign * term
    return [*criteria, {"text": f"ends with: #{value}", "weight": len(criteria)}]


def _solution(chain: Chain, careless: bool, rechecks: list[bool], repeats: int = 0) -> str:
    value, text = chain.first, ""
    for (sign, term, _), recheck in zip(chain.steps, rechecks, strict=True):
        result = without_carries(value, sign, term) if careless else value + sign * term
        text += f"{value}{_sign(sign)}{term}={result}"
        if recheck:
            # Forgetful addition and subtraction undo each other, so the check always agrees.
            text += f"({result}{_sign(-sign)}{term}={value})"
        text += ";"
        value = result
    return f"{text * (1 + repeats)}#{value}"


def _sign(sign: int) -> str:
    return "+" if sign > 0 else "-"
