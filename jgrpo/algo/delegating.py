"""PLAN for a main agent that calls a sub-agent, and what the sub-agent is paid.

The sub-agent is a role of the plan: it has weights and an optimizer of its own. A main agent calls
it as often as it likes, so its completions are aligned to a number that is the same in every step.
Letters: P prompts, K completions of the main agent for each, D most calls of one, d calls of one
that the sub-agent learns from, N places of the pool: K first turns, K times D answers, K whole
completions of main agents that have called.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from jgrpo.algo.choice import Choice
from jgrpo.algo.rounds import Finished, Plan, Seen, Want, then_if, uniform
from jgrpo.algo.row import Method

SUB = "sub"
"""The role that answers calls."""


def calls_of(form: str, text: str) -> list[str]:
    """The calls in what a main agent has written, in their order; empty ones are left out.

    Args:
      form: regular expression whose first group is a call; `.` is any character.
      text: what was written.

    Example:
      >>> calls_of("<call>(.*?)</call>", "First <call> 6*7? </call>, then <call></call>, <call>x")
      ['6*7?']
    """
    found = (match[1] for match in re.finditer(form, text, re.DOTALL))
    return [call.strip() for call in found if call and call.strip()]


def mgrpo_align(
    counts: Int[ndarray, " K"], d: int, picks: Sequence[Sequence[int]]
) -> Int[ndarray, "K d"]:
    """Numbers of the d calls of each main agent that the sub-agent learns from; -1: none.

    All calls, and copies of some where there are too few; where there are too many, some are left
    out. A main agent without a call has none.

    Args:
      counts: calls of each main agent.
      d: how many of each are wanted, at least 1.
      picks: of each, the random choices: calls to copy, or different calls to leave out.

    Raises:
      ValueError: if a main agent has another number of picks than it needs, or one that is not
        a call of it.

    References:
      M-GRPO, arXiv:2511.13288. Departs: rows of a main agent without a call are assumed.

    Example:
      >>> mgrpo_align(np.array([2, 5, 0]), 4, [[1, 0], [3], []]).tolist()
      [[0, 1, 1, 0], [0, 1, 2, 4], [-1, -1, -1, -1]]
    """
    index = np.full((len(counts), d), -1)
    for k, (count, chosen) in enumerate(zip(counts.tolist(), picks, strict=True)):
        too_many = count > d
        wanted = abs(count - d) if count else 0
        different = len(set(chosen)) == len(chosen) or not too_many
        if len(chosen) != wanted or not different or not set(chosen) <= set(range(count)):
            kind = "different calls to leave out" if too_many else "calls to copy"
            raise ValueError(
                f"picks {k} must be {wanted} {kind} of {count} (from 0), got {list(chosen)}"
            )
        if count:
            index[k] = [*range(count), *chosen] if not too_many else _without(count, chosen)
    return index


def _without(count: int, dropped: Sequence[int]) -> list[int]:
    return [call for call in range(count) if call not in dropped]


def mgrpo_reward_sub(
    m: Method,
    formed: Bool[ndarray, "*B"],
    right: Float[ndarray, "*B"],
    expert: Float[ndarray, "*B"],
) -> Float[ndarray, "*B"]:
    """b_1 + b_2 right + b_3 expert for an answer in form, else 0.

    Args:
      m: reads `sub_format_weight`, `sub_main_weight` and `sub_expert_weight`.
      formed: whether the answer is in form.
      right: how right the main agent that called was in the end, from 0 to 1.
      expert: what an expert gives the answer, likewise; of no effect if it is not in form.

    References:
      M-GRPO, arXiv:2511.13288. Departs: the weights are assumed. The release (MrlX) pays steps.

    Example:
      >>> from jgrpo.algo import METHODS
      >>> formed, right = np.array([True, True, False]), np.array([1.0, 0.0, 1.0])
      >>> mgrpo_reward_sub(METHODS["m_grpo"], formed, right, np.array([0.5, 1.0, 1.0])).tolist()
      [0.8, 0.5, 0.0]
    """
    paid = m.sub_format_weight + m.sub_main_weight * right + m.sub_expert_weight * expert
    return np.where(formed, paid, 0.0)


def delegate(m: Method, size: int, prompts: int) -> Plan:
    """Main agents call sub-agents in their first turn and finish when these have answered.

    References:
      M-GRPO, arXiv:2511.13288. Departs: one turn of calls.
    """
    most, d = m.calls_max, m.calls
    first, after = size, size + size * most  # places of answers, of what goes on behind them

    def told(seen: Seen) -> list[Want]:
        return [Want(p, 0, size, context="main") for p in range(len(seen.prompt_ids))]

    def calls(seen: Seen) -> Int[ndarray, "P K"]:
        assert seen.calls is not None
        return seen.calls[:, :size]

    def calling(seen: Seen) -> Bool[ndarray, " P"]:
        return np.any(calls(seen) > 0, axis=1)

    def asked(seen: Seen, p: int) -> list[Want]:
        return [
            Want(p, first + k * most + j, 1, context="called", of=k, said=j)
            for k, number in enumerate(calls(seen)[p].tolist())
            for j in range(number)
        ]

    def going_on(seen: Seen, p: int) -> list[Want]:
        callers = np.flatnonzero(calls(seen)[p]).tolist()
        return [
            Want(p, after + k, 1, context="main", begin="answers", of=k, said=first + k * most)
            for k in callers
        ]

    def as_it_is(seen: Seen, place: Int[ndarray, "P K"], again: Bool[ndarray, " P"]) -> Finished:
        return Finished(place=place)

    def aligned(seen: Seen, place: Int[ndarray, "P K"], again: Bool[ndarray, " P"]) -> Finished:
        place = np.where(calls(seen) > 0, place + after, place)
        noise = seen.noise[:, first:after].reshape(-1, size, most)
        each = zip(calls(seen), noise, strict=True)
        index = np.stack([mgrpo_align(n, d, _picks(n, d, chance)) for n, chance in each])
        begin = first + np.arange(size)[:, None] * most
        drawn = np.where(index >= 0, begin + index, -1).reshape(len(place), -1)
        paid = _paid(m, seen, place, drawn)
        metrics = _metrics(calls(seen), d, seen, paid)
        return Finished(place=place, of_roles={SUB: drawn}, rewards={SUB: paid}, metrics=metrics)

    answered = then_if(
        uniform(size, told), SUB, calling, asked, more=size * most, finish=as_it_is, role=SUB
    )
    whole = then_if(answered, "answered", calling, going_on, more=size, finish=aligned)
    return dataclasses.replace(whole, aligned=True)


def _picks(counts: Int[ndarray, " K"], d: int, noise: Float[ndarray, "K D"]) -> list[list[int]]:
    """Which calls are copied, any of them each time, or left out; from uniform numbers."""
    found = []
    for count, chance in zip(counts.tolist(), noise, strict=True):
        if count > d:
            found.append(np.argsort(chance[:count], kind="stable")[: count - d].tolist())
        else:
            found.append((chance[: d - count] * count).astype(int).tolist() if count else [])
    return found


def _paid(
    m: Method, seen: Seen, place: Int[ndarray, "P K"], drawn: Int[ndarray, "P M"]
) -> Float[ndarray, "P M"]:
    """What the sub-agent gets for each answer; nan where there is none, or nobody knows."""
    assert seen.rewards is not None
    assert seen.columns is not None
    assert seen.formed is not None
    assert seen.judged is not None
    right = np.where(np.isnan(seen.rewards), np.nan, seen.columns[..., 0])
    of_main = np.take_along_axis(right, place, axis=1)
    of_main = np.repeat(of_main, drawn.shape[1] // place.shape[1], axis=1)
    at = np.maximum(drawn, 0)
    formed, expert = (np.take_along_axis(x, at, axis=1) for x in (seen.formed, seen.judged))
    return np.where(drawn >= 0, mgrpo_reward_sub(m, formed, of_main, expert), np.nan)


def _metrics(
    counts: Int[ndarray, "P K"], d: int, seen: Seen, paid: Float[ndarray, "P M"]
) -> dict[str, float]:
    """How often main agents call, what alignment makes of it, and how the answers fare."""
    assert seen.formed is not None
    assert seen.judged is not None
    number, known = max(int(counts.sum()), 1), paid[~np.isnan(paid)]
    copies = np.where(counts > 0, np.maximum(d - counts, 0), 0).sum()
    formed = int(seen.formed.sum())
    return {
        "call/mean": float(counts.mean()),
        "call/dropped_fraction": float(np.maximum(counts - d, 0).sum() / number),
        "call/duplicated_fraction": float(copies / max(d * int((counts > 0).sum()), 1)),
        "call/form_fraction": formed / number,
        "call/judged_fraction": float((~np.isnan(seen.judged)).sum() / max(formed, 1)),
        "call/reward_mean": float(known.mean()) if known.size else 0.0,
    }


DELEGATIONS: Mapping[str, Choice] = {
    "delegate": Choice(
        function=delegate,
        formula="completions whose first turn has calls, at most calls_max, are gone on with behind"
        " the answers of another policy, the sub-agent; of each one's answers this learns from"
        " d = calls, copies or a part of them, in one group a prompt, by GRPO with the main"
        " policy's level, from R = b_1 + b_2 o + b_3 e in form, else 0: b_1 = sub_format_weight,"
        " b_2 = sub_main_weight, b_3 = sub_expert_weight, o the first reward of the completion that"
        " called, e an expert's word",
        constants=(
            *("calls", "calls_max", "loss_on_injected"),
            *("sub_format_weight", "sub_main_weight", "sub_expert_weight"),
        ),
        needs=("rounds", "calls"),
        watch=(
            *("plan/replaced_fraction", "plan/drawn_tokens", "call/mean", "call/dropped_fraction"),
            *("call/duplicated_fraction", "call/form_fraction", "call/reward_mean"),
        ),
        pitfalls=(
            "A policy that never calls learns alone: look at call/mean, and at calls.main and "
            "calls.form.",
            "Held-out prompts are asked without calls.main, and nobody answers calls there.",
            "Copies count twice, in statistics and gradient: keep calls near what is usual.",
            "Calls and their answers share rollout.max_completion_tokens with the end.",
        ),
    ),
}
