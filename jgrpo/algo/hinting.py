"""PLAN for hints that another policy writes, the gates that they pass, and what they are paid.

The hinter is a role of the plan: it has weights and an optimizer of its own, and learns from its
hints as the policy does from its completions. Letters: P prompts, M hints of a prompt, G
completions under each, N places of the pool: G plain completions, M hints, M times G under a hint.
"""

import enum
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from jgrpo.algo.choice import Choice
from jgrpo.algo.rounds import Finished, Plan, Seen, Want, then_if, uniform, unsolved
from jgrpo.algo.row import Method

HINTER = "hinter"
"""The role that writes hints."""


class Gate(enum.IntEnum):
    """What was found of a hint."""

    ABSENT = 0
    """Nobody has written one."""
    OPEN = 1
    """It may be used."""
    UNPARSED = 2
    """What was written has no hint in it, or an empty one."""
    LEAK = 3
    """It tells the answer."""
    TOO_LONG = 4
    """The prompt with it is longer than prompts may be."""


def hint_of(form: str, text: str) -> str:
    """The hint in what a hinter has written; "" if there is none.

    Args:
      form: regular expression whose first group is the hint; `.` is any character.
      text: what was written.

    Example:
      >>> hint_of("<hint>(.*?)</hint>", "<analysis>It adds.</analysis><hint> Multiply. </hint>")
      'Multiply.'
    """
    found = re.search(form, text, re.DOTALL)
    return found[1].strip() if found and found[1] else ""


def leaks(hint: str, answer: str) -> bool:
    r"""Whether a hint tells the answer; case does not matter.

    An answer of more than two characters must not stand in it. A shorter one may, but not as
    `= a`, `is a`, `equals a`, `equal to a`, `answer: a` or `\boxed{a}`.

    References:
      HiLL, arXiv:2604.00698, `check_answer_leaking_string_match`. Departs: none.

    Example:
      >>> leaks("The area is 12.", "12"), leaks("Add 12 first.", "12"), leaks("Add 120.", "120")
      (True, False, True)
    """
    told, answer = hint.lower(), answer.strip().lower()
    if not answer:
        return False
    if len(answer) > 2:
        return answer in told
    forms = ("= {}", "is {}", "equals {}", "equal to {}", "answer: {}", "\\boxed{{{}}}")
    return any(form.format(answer) in told for form in forms)


def gate(hint: str, answer: str, fits: bool) -> Gate:
    """Whether a hint may be used.

    Args:
      hint: the hint; "": none was found.
      answer: the reference answer; "": none is known, and none can leak.
      fits: whether the prompt with the hint is not too long.
    """
    if not hint:
        return Gate.UNPARSED
    if leaks(hint, answer):
        return Gate.LEAK
    return Gate.OPEN if fits else Gate.TOO_LONG


def hill_base(right: Int[ndarray, "*B"], number: Int[ndarray, "*B"]) -> Float[ndarray, "*B"]:
    """Chance that a group has both outcomes: 1 - p^n - (1 - p)^n, p = right / n; 0 for n = 0.

    Args:
      right: right completions of a group.
      number: its completions, n.
    """
    share = right / np.maximum(number, 1)
    base = 1.0 - share**number - (1.0 - share) ** number
    return np.where((right > 0) & (right < number), base, 0.0)


class Paid(NamedTuple):
    """What hints are worth.

    Attributes:
      rewards: what the hinter gets.
      base: chance that the completions under a hint have both outcomes.
    """

    rewards: Float[ndarray, "P M"]
    base: Float[ndarray, "P M"]


def hill_hint_reward(
    m: Method,
    rewards: Float[ndarray, "P M G"],
    reliance: Float[ndarray, "P M G"],
    opened: Bool[ndarray, "P M"],
    before: Float[ndarray, " P"],
) -> Paid:
    """Base exp(min(mean reliance, 0) / T) for a hint that may be used, else -hint_fault.

    The mean is over right completions, those of a reward above `unsolved_at`; T is
    `hint_reliance`. A hint whose base is not above that of the prompt alone gets 0.

    Args:
      m: the method.
      rewards: of the completions under each hint; nan where none has one.
      reliance: log-prob of each without the hint less that with it, mean over tokens, in nats.
      opened: whether a hint may be used.
      before: base of the completions without a hint.

    References:
      HiLL, arXiv:2604.00698, `compute_hint_reward`. Departs: none for `transfer_weighted_non_deg`.
    """
    right = rewards > m.unsolved_at
    number = right.sum(axis=2)
    base = np.where(opened, hill_base(number, (~np.isnan(rewards)).sum(axis=2)), 0.0)
    mean = np.where(right, reliance, 0.0).sum(axis=2) / np.maximum(number, 1)
    value = base * np.exp(np.minimum(mean, 0.0) / m.hint_reliance)
    value = np.where(base > before[:, None], value, 0.0)
    return Paid(np.where(opened, value, -m.hint_fault), base)


def hill_select(paid: Paid) -> Int[ndarray, " P"]:
    """The hint of highest reward among those with a base above 0, the first of equals; -1: none.

    References:
      HiLL, arXiv:2604.00698, `select_best_hint`. Departs: none.
    """
    useful = paid.base > 0
    best = np.where(useful, paid.rewards, -np.inf).argmax(axis=1)
    return np.where(useful.any(axis=1), best, -1)


def hinter(m: Method, size: int, prompts: int) -> Plan:
    """Unsolved prompts are drawn again under hints; the best one's completions are the group.

    The hinter sees one failed completion, drawn at random, and the worked solution.

    References:
      HiLL, arXiv:2604.00698; Andree-9/HiLL `verl/trainer/ppo`.
    """
    first = size + m.hints  # places before those under a hint

    def wanted(seen: Seen, p: int) -> list[Want]:
        assert seen.rewards is not None
        tried = np.flatnonzero(~np.isnan(seen.rewards[p, :size]))
        failed = int(tried[int(seen.noise[p, size] * len(tried))])
        return [Want(p, size, m.hints, context="hinter", of=failed)]

    def opened(seen: Seen) -> Bool[ndarray, "P M"]:
        assert seen.gates is not None
        return seen.gates[:, size:first] == Gate.OPEN

    def under(seen: Seen, p: int) -> list[Want]:
        usable = np.flatnonzero(opened(seen)[p]).tolist()
        place = lambda j: first + j * size  # noqa: E731
        return [Want(p, place(j), size, context="hinted", of=j + 1, said=size + j) for j in usable]

    def as_it_is(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        return Finished(place=place)

    def replaced(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        paid, metrics = _hints_of(m, seen, size)
        chosen = hill_select(paid)
        for p in np.flatnonzero(chosen >= 0):
            place[p] = first + chosen[p] * size + np.arange(size)
        return Finished(place=place, rewards={HINTER: paid.rewards}, metrics=metrics)

    hard: Callable[[Seen], Bool[ndarray, " P"]] = lambda seen: unsolved(m, seen, size)  # noqa: E731
    some: Callable[[Seen], Bool[ndarray, " P"]] = lambda seen: np.any(opened(seen), axis=1)  # noqa: E731
    written = then_if(
        uniform(size), HINTER, hard, wanted, more=m.hints, finish=as_it_is, role=HINTER
    )
    return then_if(written, "hinted", some, under, more=m.hints * size, finish=replaced)


def _hints_of(m: Method, seen: Seen, size: int) -> tuple[Paid, dict[str, float]]:
    """What the hints of a step are paid, nan where there is none, and its metrics."""
    assert seen.rewards is not None
    assert seen.gates is not None
    assert seen.reliance is not None
    first, alone = size + m.hints, seen.rewards[:, :size]
    gates, shape = seen.gates[:, size:first], (len(alone), m.hints, size)
    rewards, reliance = (x[:, first:].reshape(shape) for x in (seen.rewards, seen.reliance))
    opened, there = gates == Gate.OPEN, gates != Gate.ABSENT
    before = hill_base((alone > m.unsolved_at).sum(axis=1), (~np.isnan(alone)).sum(axis=1))
    paid = hill_hint_reward(m, rewards, reliance, opened, before)
    right, number = rewards > m.unsolved_at, max(int(there.sum()), 1)
    metrics = {
        "hint/valid_fraction": float(opened.sum() / number),
        "hint/leak_fraction": float((gates == Gate.LEAK).sum() / number),
        "hint/reward_mean": float(paid.rewards[there].sum() / number),
        "hint/reliance_mean": float(reliance[right].sum() / max(int(right.sum()), 1)),
    }
    return Paid(np.where(there, paid.rewards, np.nan), paid.base), metrics


HINTS: Mapping[str, Choice] = {
    "hinter": Choice(
        function=hinter,
        formula="if max R <= unsolved_at: another policy, given a failed completion and the"
        " solution, writes M hints; G completions under each that parses, does not tell the answer"
        " and fits; hint j gets R_j = base_j exp(min(D_j, 0) / hint_reliance), base_j = 1 - p^G -"
        " (1 - p)^G, p the share of right ones, D_j = mean over these of mean_t (lp(y | q) -"
        " lp(y | q, hint)), and -hint_fault if it may not be used; the G completions of the best"
        " with base > 0 take the group's place, their hint kept; the hinter learns by GRPO from R",
        constants=("unsolved_at", "hints", "hint_reliance", "hint_fault"),
        needs=("rounds", "solutions", "hints"),
        watch=(
            *("plan/again_fraction", "plan/replaced_fraction", "plan/drawn_tokens"),
            *("hint/valid_fraction", "hint/leak_fraction", "hint/reward_mean"),
            "hint/reliance_mean",
        ),
        pitfalls=(
            "A hinter whose hints all fail the gates in the same way learns nothing: look at "
            "hint/valid_fraction, and at context.hinter and context.hint_form.",
            "A step may draw hints G completions of an unsolved prompt besides the first G.",
        ),
    ),
}
