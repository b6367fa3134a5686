"""PLAN, further ones: what comes back into a group from an earlier step, or revised.

Letters and rules are those of `rounds` and `plans`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from jgrpo.algo.choice import Choice
from jgrpo.algo.rounds import Finished, Plan, Ratio, Seen, Want, then_if, uniform
from jgrpo.algo.row import Method

# (m, completions of a group on average, prompts of a step) -> the plan
Planner: TypeAlias = Callable[[Method, int, int], Plan]


def replay(m: Method, size: int, prompts: int) -> Plan:
    """A completion of an earlier step stands in the last place, where one comes back.

    References:
      ExGRPO, arXiv:2510.02245; ElliottYan/LUFFY `ExGRPO/exgrpo`.
    """

    def wants(seen: Seen) -> list[Want]:
        assert seen.stored is not None
        found = []
        for p, length in enumerate(seen.stored.tolist()):
            found.append(Want(p, 0, size - (length > 0)))
            if length:
                whole = {"begin": "stored", "tokens": length, "drawn": False}
                found.append(Want(p, size - 1, 1, **whole, ratio=Ratio.RECORDED))
        return found if seen.stored.any() else []

    return dataclasses.replace(uniform(size, wants), marks=True)


def rubric_refine(m: Method, size: int, prompts: int) -> Plan:
    """The best completion is refined by what it fails of its rubric; this replaces the worst.

    Of equals the first is the best and the last the worst. A completion without a score is worse
    than any other.

    References:
      RGR-GRPO, arXiv:2511.12344. Departs: number and place of the refined rows are assumed.
    """
    rows = min(m.refined_rows, size - 1)

    def scores(seen: Seen) -> Float[ndarray, "P G"]:
        assert seen.rubric is not None
        first = seen.rubric[:, :size]
        return np.where(np.isnan(first), -np.inf, first)

    def refined(seen: Seen, p: int) -> list[Want]:
        best = int(scores(seen)[p].argmax())
        further = {"context": "criteria", "kept": False, "ratio": Ratio.BEHAV}
        return [Want(p, size, rows, of=best, **further)]

    def finish(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        worst = size - 1 - np.argsort(scores(seen)[:, ::-1], axis=1, kind="stable")[:, :rows]
        for p in np.flatnonzero(again):
            place[p, worst[p]] = size + np.arange(rows)
        return Finished(place=place)

    def imperfect(seen: Seen) -> Bool[ndarray, " P"]:
        best = scores(seen).max(axis=1)
        return np.isfinite(best) & (best < 1.0)

    return then_if(uniform(size), "criteria", imperfect, refined, more=rows, finish=finish)


def feedback(m: Method, size: int, prompts: int) -> Plan:
    """A teacher comments on the first completions of a group, and the policy goes on behind that.

    What comes of it takes the place of the completion commented on.

    References:
      ThinkTuning, arXiv:2508.07616. Departs: known from its abstract; that the policy goes on, and
      in whose place, is assumed. The teacher is the policy itself, told to comment.
    """
    rows = int(m.feedback_share * size)

    def everybody(seen: Seen) -> Bool[ndarray, " P"]:
        return np.full(len(seen.prompt_ids), rows > 0)

    def commented(seen: Seen, p: int) -> list[Want]:
        return [Want(p, size + g, 1, context="teacher", of=g) for g in range(rows)]

    def going_on(seen: Seen, p: int) -> list[Want]:
        given = {"begin": "feedback", "ratio": Ratio.UNIT}
        return [Want(p, size + rows + g, 1, of=g, said=size + g, **given) for g in range(rows)]

    def as_it_is(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        return Finished(place=place)

    def replaced(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        place[np.ix_(again, np.arange(rows))] = size + rows + np.arange(rows)
        return Finished(place=place)

    said = then_if(
        uniform(size), "teacher", everybody, commented, more=rows, finish=as_it_is, reads=False
    )
    return then_if(said, "feedback", everybody, going_on, more=rows, finish=replaced, reads=False)


REVISIONS: Mapping[str, Choice[Planner]] = {
    "replay": Choice(
        function=replay,
        formula="G completions, or G - 1 and one of an earlier step, rho = pi(y) / pi_then(y)",
        needs=("rounds", "replay"),
    ),
    "rubric_refine": Choice(
        function=rubric_refine,
        formula="if the best rubric score is below 1: refined_rows completions, given the best one"
        " and the criteria that it fails, replace the worst rows; trained without them,"
        " rho = pi(y | q) / old(y | q, best, criteria)",
        constants=("refined_rows",),
        needs=("rounds", "rubric"),
        watch=("plan/again_fraction", "plan/replaced_fraction", "plan/drawn_tokens"),
        pitfalls=(
            "A judge that errs is wrong twice: in the reward, and in what the policy is told.",
        ),
    ),
    "feedback": Choice(
        function=feedback,
        formula="the first int(feedback_share G) completions are replaced by what the policy makes"
        " of them: completion, comment of at most feedback_tokens, continuation; rho = pi(y) at"
        " the comment, whose tokens are out of the loss where A <= 0 if loss_on_injected_losers"
        " is 0",
        constants=(
            *("feedback_share", "feedback_tokens"),
            *("loss_on_injected", "loss_on_injected_losers"),
        ),
        needs=("rounds",),
        watch=("plan/replaced_fraction", "plan/drawn_tokens"),
        pitfalls=("A comment that misleads is learned like one that helps, if the end is right.",),
    ),
}
