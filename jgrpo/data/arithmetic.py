"""The tasks `gcd`, `mod` and `addition`: small sets of problems, each of which occurs once.

`gcd` and `mod` come in two styles: `plain`, solved step by step in the signs of the embedded model,
and `few_shot`, the start of a text that a language model continues with the bare answer (let it
stop at the newline). `addition` is a chat that asks for the number only.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Le

from jgrpo.data.draws import below, content_hash, enumerated, is_heldout, stream
from jgrpo.types import Example

PLAIN_PATTERN = r"([0-9]+[%*-][0-9]+=[0-9]+;)+#[0-9]+"
"""A well-formed completion of `gcd` and `mod` in the style `plain`."""
BARE_PATTERN = r" ?[0-9]+\.?\s*"
"""A well-formed completion that is a bare number."""

_NUM_SHOTS = 3
_ADDITION_ONE_IN = 5

Style: TypeAlias = Literal["plain", "few_shot"]
MaxNumber: TypeAlias = Annotated[int, Ge(20), Le(200)]
Pair: TypeAlias = tuple[int, int]
Split: TypeAlias = tuple[tuple[Example, ...], tuple[Example, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GcdOptions:
    """Settings of `gcd`.

    Attributes:
      style: `plain`, or `few_shot` for a language model.
      max_number: numbers are 2 to this.
      max_per_answer: how many unordered pairs of each answer are kept. Three pairs in five have
        the answer 1: without a limit, always saying 1 is a good policy.
    """

    style: Style = "plain"
    max_number: MaxNumber = 99
    max_per_answer: Annotated[int, Ge(1)] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModOptions:
    """Settings of `mod`.

    Attributes:
      style: `plain`, or `few_shot` for a language model.
      max_number: numbers are 2 to this.
    """

    style: Style = "plain"
    max_number: MaxNumber = 99


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditionOptions:
    """Settings of `addition`.

    Attributes:
      digits: both numbers are 0 to 9, or 0 to 99.
    """

    digits: Annotated[int, Ge(1), Le(2)] = 1


def gcd(options: GcdOptions) -> Split:
    """Greatest common divisors: `gcd(12,18)=?` is answered `18%12=6;12%6=0;#6`."""
    pairs = _at_most(options.max_per_answer, _pairs(options.max_number))
    return _split(pairs, options.style, "gcd({},{})=?", "gcd({}, {}) =", math.gcd, _euclid)


def mod(options: ModOptions) -> Split:
    """Remainders: `17%5=?` is answered `3*5=15;17-15=2;#2`. The first number is the larger."""
    pairs = [(a, b) for a, b in _pairs(options.max_number) if a > b]
    return _split(pairs, options.style, "{}%{}=?", "{} mod {} =", lambda a, b: a % b, _divide)


def addition(options: AdditionOptions) -> Split:
    """Sums as a chat, `What is 7+5? Reply with only the number.`; a fifth is held out."""
    numbers = range(10**options.digits)

    def write(pair: Pair) -> Example:
        a, b = pair
        question = f"What is {a}+{b}? Reply with only the number."
        num_carries = sum(a % unit + b % unit >= unit for unit in (10, 100))
        return Example(
            prompt=[{"role": "user", "content": question}],
            answer=str(a + b),
            solution=str(a + b),
            columns={"num_carries": num_carries, "difficulty": len(str(a + b)) + num_carries},
        )

    return enumerated(
        [(a, b) for a in numbers for b in numbers],
        key=lambda pair: f"{min(pair)}+{max(pair)}",
        write=write,
        one_in=_ADDITION_ONE_IN,
    )


def _pairs(max_number: int) -> list[Pair]:
    numbers = range(2, max_number + 1)
    return [(a, b) for a in numbers for b in numbers]


def _at_most(limit: int | None, pairs: list[Pair]) -> list[Pair]:
    """Keeps at most `limit` unordered pairs of each greatest common divisor, chosen by hash."""
    mixed = sorted((pair for pair in pairs if pair[0] <= pair[1]), key=_mixing)
    seen, kept = Counter[int](), set[Pair]()
    for pair in mixed:
        divisor = math.gcd(*pair)
        if limit is None or seen[divisor] < limit:
            seen[divisor] += 1
            kept.add(pair)
    return [(a, b) for a, b in pairs if (min(a, b), max(a, b)) in kept]


def _mixing(pair: Pair) -> int:
    return content_hash(f"kept {_unordered(pair)}")


def _unordered(pair: Pair) -> str:
    return f"{min(pair)},{max(pair)}"


def _split(
    pairs: list[Pair],
    style: Style,
    plain: str,
    shot: str,
    answer: Callable[[int, int], int],
    solve: Callable[[int, int], list[str]],
) -> Split:
    # A shot shows its answer, so shots come from the training split only.
    shots = [pair for pair in pairs if not is_heldout(_unordered(pair))]

    def few_shot(pair: Pair) -> str:
        lines = [f"{shot.format(a, b)} {answer(a, b)}\n" for a, b in _shots(shots, pair, shot)]
        return "".join(lines) + shot.format(*pair)

    def write(pair: Pair) -> Example:
        result, steps = answer(*pair), solve(*pair)
        is_plain = style == "plain"
        return Example(
            prompt=plain.format(*pair) if is_plain else few_shot(pair),
            answer=str(result),
            solution=f"{';'.join(steps)};#{result}" if is_plain else f" {result}\n",
            columns={"num_steps": len(steps), "difficulty": len(steps)},
        )

    return enumerated(pairs, key=_unordered, write=write)


def _shots(candidates: list[Pair], asked: Pair, name: str) -> list[Pair]:
    """Draws worked problems that share no number with the one asked or with each other."""
    draws, used = stream(f"{name}/{asked}"), set(asked)
    found: list[Pair] = []
    while len(found) < _NUM_SHOTS:
        pair = candidates[below(draws, len(candidates))]
        if used.isdisjoint(pair):
            found.append(pair)
            used.update(pair)
    return found


def _euclid(a: int, b: int) -> list[str]:
    large, small = max(a, b), min(a, b)
    steps = []
    while small:
        steps.append(f"{large}%{small}={large % small}")
        large, small = small, large % small
    return steps


def _divide(a: int, b: int) -> list[str]:
    whole = a // b * b
    return [f"{a // b}*{b}={whole}", f"{a}-{whole}={a % b}"]
