"""The built-in reward functions.

Each takes keyword arguments only, `completions` and the columns it needs, a list of one entry per
completion each, and returns one number per completion, or None where it has nothing to say (TRL's
signature, so functions written for TRL work here). Arguments with a default are the options of the
reward; they are set in the config and checked against their annotations when the run begins. How
rewards are summed is decided in `score.py`.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, MinLen

from jgrpo.rewards import countdown as countdown_rules
from jgrpo.rewards import judges
from jgrpo.rewards.cobalt import cobalt
from jgrpo.rewards.code import code_tests
from jgrpo.rewards.overlap import answer_overlap
from jgrpo.rewards.paraphrases import information_consistency, paraphrase_agreement
from jgrpo.rewards.stimulus import stimulus
from jgrpo.rewards.text import (
    Completion,
    first_number,
    last_number,
    leading_number,
    parse_number,
    text,
)

Text: TypeAlias = Annotated[str, MinLen(1)]

_TAGGED = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
_A_SUM = re.compile(r"\s*[0-9]{1,15}(\s*[+-]\s*[0-9]{1,15})+\s*")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def exact_match(
    *,
    completions: Sequence[Completion],
    answer: Sequence[str],
    case: Literal["keep", "ignore"] = "keep",
) -> list[float | None]:
    """1 if the completion is the answer, blanks around it aside; else 0.

    Args:
      completions: what the model wrote.
      answer: reference answers; None is returned where there is none.
      case: whether upper and lower case differ.
    """
    fold = str.casefold if case == "ignore" else str
    return [
        float(fold(text(completion).strip()) == fold(wanted.strip())) if wanted.strip() else None
        for completion, wanted in zip(completions, answer, strict=True)
    ]


def number_match(
    *,
    completions: Sequence[Completion],
    answer: Sequence[str],
    where: Literal["last", "first"] = "last",
) -> list[float | None]:
    """1 if the last (or first) number of the completion equals the answer; else 0.

    Args:
      completions: what the model wrote.
      answer: reference answers; None is returned where that is not a number.
      where: which number of the completion counts.
    """
    find = last_number if where == "last" else first_number
    return [
        _equal(find(text(completion)), wanted)
        for completion, wanted in zip(completions, answer, strict=True)
    ]


def tagged_number(
    *,
    completions: Sequence[Completion],
    answer: Sequence[str],
    marker: Text = "#",
    trailing: Literal["refuse", "ignore"] = "refuse",
) -> list[float | None]:
    """1 if the number after the last marker equals the answer; else 0.

    Args:
      completions: what the model wrote.
      answer: reference answers; None is returned where that is not a number.
      marker: what stands before the number: `#`, or `####` for GSM8K.
      trailing: whether text may follow the number; a dot and blanks always may.
    """
    return [
        _equal(_tagged(text(completion), marker, trailing), wanted)
        for completion, wanted in zip(completions, answer, strict=True)
    ]


def regex_format(*, completions: Sequence[Completion], pattern: Text = ".*") -> list[float | None]:
    """1 if the whole completion matches a regular expression; else 0.

    Args:
      completions: what the model wrote.
      pattern: the expression (Python's `re`); by default that of the task. Blanks at the end of
        the completion do not matter.
    """
    form = re.compile(pattern)
    return [float(form.fullmatch(text(item).rstrip()) is not None) for item in completions]


def sum_match(
    *, prompts: Sequence[Completion], completions: Sequence[Completion]
) -> list[float | None]:
    """1 if the last number of the completion is the value of the sum in the prompt; else 0.

    An expert (`calls.experts`) for calls such as `61+72-79`.

    Args:
      prompts: whole numbers of at most 15 digits with plus and minus between them; None is returned
        for any other.
      completions: what the model wrote.
    """
    return [
        None if value is None else float(last_number(text(completion)) == value)
        for value, completion in zip(map(_sum, map(text, prompts)), completions, strict=True)
    ]


def tag_format(*, completions: Sequence[Completion]) -> list[float | None]:
    """1 if the completion is `<think>...</think><answer>...</answer>`, each tag once; else 0."""
    return [
        float(all(words.count(tag) == 1 for tag in _TAGS) and _TAGGED.fullmatch(words) is not None)
        for words in map(text, completions)
    ]


def math_verify(*, completions: Sequence[Completion], answer: Sequence[str]) -> list[float | None]:
    """1 if the completion's final expression equals the answer as mathematics; else 0.

    Parses LaTeX and plain expressions with the package math-verify. Slow and sometimes endless, so
    it runs in a worker process that is killed at its deadline, with the package's own off.

    Args:
      completions: what the model wrote.
      answer: reference answers in LaTeX or plain; None is returned where it cannot be parsed.
    """
    import math_verify as package

    # It warns that its own timeouts are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    values: list[float | None] = []
    for completion, wanted in zip(completions, answer, strict=True):
        gold = package.parse(f"${wanted}$", parsing_timeout=0) if wanted.strip() else []
        if not gold:
            values.append(None)
            continue
        found = package.parse(text(completion), parsing_timeout=0)
        values.append(float(package.verify(gold, found, timeout_seconds=0)))
    return values


def length(
    *,
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    answer: Sequence[str],
    max_tokens: Annotated[int, Ge(1)] = 256,
    when: Literal["always", "exact_match", "number_match", "tagged_number"] = "always",
    marker: Text = "#",
) -> list[float | None]:
    """A bonus for brevity: 1 for no tokens, falling linearly to 0 at `max_tokens`.

    Args:
      completions: what the model wrote.
      completion_ids: its tokens, EOS included.
      answer: reference answers.
      max_tokens: length from which on there is no bonus.
      when: the reward that must give 1 for a completion to get its bonus; the others get 0.
      marker: option of `tagged_number`.
    """
    bonus = [max(0.0, 1.0 - len(ids) / max_tokens) for ids in completion_ids]
    if when == "always":
        return [*bonus]
    options = {"marker": marker} if when == "tagged_number" else {}
    correct = _CHECKS[when](completions=completions, answer=answer, **options)
    return [
        None if right is None else value * right
        for value, right in zip(bonus, correct, strict=True)
    ]


def countdown(
    *,
    completions: Sequence[Completion],
    numbers: Sequence[Sequence[int]],
    target: Sequence[int],
    within: Literal["hash", "answer_tags"] = "hash",
) -> list[float | None]:
    """1 if the expression reaches the target with each number used at most once; else 0.

    Args:
      completions: what the model wrote.
      numbers: the numbers given.
      target: what to reach.
      within: the expression stands after the last `#`, or in the last `<answer>` tags.
    """
    return [
        float(countdown_rules.solves(_expression(text(completion), within), given, goal))
        for completion, given, goal in zip(completions, numbers, target, strict=True)
    ]


def _equal(found: str | None, wanted: str) -> float | None:
    number = parse_number(wanted)
    return None if number is None else float(found == number)


def _sum(words: str) -> str | None:
    if not _A_SUM.fullmatch(words):
        return None
    return str(sum(map(int, re.findall("[+-]?[0-9]+", re.sub(r"\s", "", words)))))


def _tagged(words: str, marker: str, trailing: str) -> str | None:
    _, found, tail = words.rpartition(marker)
    if not found:
        return None
    if trailing == "refuse":
        return parse_number(tail)
    number = leading_number(tail)
    return number[0] if number else None


def _expression(words: str, within: str) -> str:
    if within == "hash":
        return words.rpartition("#")[2] if "#" in words else ""
    head, closed, _ = words.rpartition("</answer>")
    return head.rpartition("<answer>")[2] if closed and "<answer>" in head else ""


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """A built-in reward.

    Attributes:
      function: what computes it.
      package: the optional package that it needs, or "".
      extra: the extra of ours that installs the package, or "".
      isolated: run in a worker process with a deadline.
      isolated_by: option that, if the config sets it, makes it isolated; or "".
      check: says what is wrong with its options together, before the run begins; "" if nothing is.
    """

    function: Callable[..., list[float | None]]
    package: str = ""
    extra: str = ""
    isolated: bool = False
    isolated_by: str = ""
    check: Callable[[Mapping[str, Any]], str] | None = None


_CHECKS: Mapping[str, Callable[..., list[float | None]]] = {
    "exact_match": exact_match,
    "number_match": number_match,
    "tagged_number": tagged_number,
}

REWARDS: Mapping[str, BuiltIn] = {
    "exact_match": BuiltIn(exact_match),
    "number_match": BuiltIn(number_match),
    "tagged_number": BuiltIn(tagged_number),
    "regex_format": BuiltIn(regex_format, isolated_by="pattern"),  # it may backtrack for ever
    "sum_match": BuiltIn(sum_match),
    "tag_format": BuiltIn(tag_format),
    "math_verify": BuiltIn(math_verify, package="math_verify", extra="math", isolated=True),
    "code_tests": BuiltIn(code_tests, package="pydantic_monty", extra="sandbox", isolated=True),
    "cobalt": BuiltIn(cobalt, package="pydantic_monty", extra="sandbox", isolated=True),
    "length": BuiltIn(length),
    "countdown": BuiltIn(countdown),
    "stimulus": BuiltIn(stimulus),
    "answer_overlap": BuiltIn(answer_overlap),
    "paraphrase_agreement": BuiltIn(paraphrase_agreement),
    "information_consistency": BuiltIn(information_consistency),
    "judge_rubric": BuiltIn(judges.judge_rubric, isolated=True, check=judges.problem),
    "judge_rules": BuiltIn(judges.judge_rules, isolated=True, check=judges.problem_of_rules),
    "judge_score": BuiltIn(judges.judge_score, isolated=True, check=judges.problem),
}
"""Every built-in reward by name."""
