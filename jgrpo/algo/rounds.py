"""PLAN, its records and combinators: what is asked round by round, and what becomes of the answers.

A plan is a record of pure functions over what has been seen of a step so far. It says what it wants
in words (a hint, a draft, a solution); `jgrpo.contexts` turns the words into tokens. Four
combinators make all plans: `uniform`, `then_if`, `allocate` and `branch`.

Letters: P prompts, N places of the pool (every completion that a step may draw of a prompt has a
place in it, and prompt and place name its noise), G places of a group that is trained, M places of
a group of a role, R reward functions.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, PyTree
from numpy import ndarray

from jgrpo.algo.allocation import allocation, sequential, tracked_estimates
from jgrpo.algo.row import Method


class Ratio(enum.IntEnum):
    """What a completion's policy is compared with in the importance ratio."""

    SAME = 0
    """The old policy under the prompt that is trained."""
    BEHAV = 1
    """The old policy under the prompt that was sampled."""
    UNIT = 2
    """1 at tokens that nobody drew, whose ratio is the probability itself; `SAME` at others."""
    RECORDED = 3
    """What was stored when the completion was first sampled."""
    OWN = 4
    """The policy itself, whatever it is: the ratio is 1, its gradient that of the likelihood."""


@dataclasses.dataclass(frozen=True)
class Want:
    """Completions of one prompt that are wanted alike, in places that follow each other.

    Attributes:
      prompt: its number in the round.
      first: place of the first one in the pool.
      count: how many.
      context: what is put around the prompt: `hint`, `draft`, `answer`, `criteria` (a draft and
        what it fails of its rubric), `teacher` (a draft to comment on), `hinter` (a draft and the
        worked solution, to write a hint), `hinted` (such a hint), `budget`, `predict`, `skill`,
        `main` (how to call), `called` (a call of a draft, in the prompt's place); "": nothing.
      of: which of them: a hint's level from 1, a draft's place, a budget in tokens, a skill's
        number in the cache from 1; place of the completion that is the path.
      begin: what the completions begin with: `solution`, `path`, a completion of the pool,
        `stored`, one of an earlier step, `feedback`, a draft and what was said of it, or `answers`,
        a draft and the answers to its calls.
      said: place of what was said, of the first answer; number of a call, from 0.
      tokens: how much of it.
      phrase: whether the exit phrase follows it.
      limit: most tokens of each, if fewer than the run allows; 0: those.
      drawn: False: the beginning, and an end, is the whole completion.
      kept: whether what is around the prompt stays there in training.
      ratio: what its policy is compared with.
      likelihood: above 0: trained by its likelihood with this weight, outside of the group.
    """

    prompt: int
    first: int
    count: int
    context: str = ""
    of: int = 0
    begin: str = ""
    said: int = 0
    tokens: int = 0
    phrase: bool = False
    limit: int = 0
    drawn: bool = True
    kept: bool = True
    ratio: Ratio = Ratio.SAME
    likelihood: float = 0.0


class Round(NamedTuple):
    """What is asked at once.

    Attributes:
      name: of the round; a plan knows by it what it has asked.
      wants: what is wanted; empty: whole groups of plain completions.
      role: who draws it: a role of the plan; "": the policy.
    """

    name: str
    wants: Sequence[Want] = ()
    role: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What a plan may look at.

    Attributes:
      rounds: names of the rounds so far.
      step: number of the step, from 0.
      steps: steps of the run.
      room: most tokens that a completion may begin with, if one is to be drawn behind the phrase.
      prompt_ids: numbers of the prompts in the data set.
      drawn: completions of each prompt so far.
      noise: uniform numbers in [0, 1), named by step, prompt and place.
      lengths: tokens of each completion; 0 where there is none.
      rewards: nan where there is none; None unless the plan reads them.
      rubric: scores by the prompts' own criteria, at most 1; nan where there is none, None unless
        the plan reads them.
      solutions: tokens of each prompt's worked solution, or None without them.
      stored: tokens of the completion that comes back for each prompt; 0: none does.
      guidance: tokens of guidance in this step.
      tracked: state of the tracker.
      predicted: mean pass rate and length (tokens) that the predictions of each prompt tell, nan
        where none can be read; None unless the plan reads them.
      skills: number in the cache, from 1, of the skill chosen for each prompt; 0: none. None unless
        the plan uses skills.
      stops: tokens of each completion behind which a preference model would end it, 0: none; None
        unless the plan reads them, and after later rounds than the first.
      gates: what was found of the hint in each place (`hinting.Gate`); None unless the plan has
        hints written.
      reliance: of right completions drawn under a context: mean over tokens of the log-prob (nats)
        without it less that with it; 0 for others. None until all rounds are over, and likewise.
      calls: calls of each completion that can be answered; None unless the plan has that done.
      columns: each reward; nan where there is none. None until all rounds are over, and likewise.
      formed: whether there is an answer to a call, in form. Likewise.
      judged: what experts give such answers; nan where they say nothing. Likewise.
    """

    rounds: tuple[str, ...]
    step: int
    steps: int
    room: int
    prompt_ids: Int[ndarray, " P"]
    drawn: Int[ndarray, " P"]
    noise: Float[ndarray, "P N"]
    lengths: Int[ndarray, "P N"]
    rewards: Float[ndarray, "P N"] | None = None
    rubric: Float[ndarray, "P N"] | None = None
    solutions: Int[ndarray, " P"] | None = None
    stored: Int[ndarray, " P"] | None = None
    guidance: int = 0
    tracked: PyTree = None
    predicted: Float[ndarray, "P 2"] | None = None
    skills: Int[ndarray, " P"] | None = None
    stops: Int[ndarray, "P N"] | None = None
    gates: Int[ndarray, "P N"] | None = None
    reliance: Float[ndarray, "P N"] | None = None
    calls: Int[ndarray, "P N"] | None = None
    columns: Float[ndarray, "P N R"] | None = None
    formed: Bool[ndarray, "P N"] | None = None
    judged: Float[ndarray, "P N"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """The groups that are trained, out of the pool.

    Attributes:
      place: place of the pool that each place of a group takes; -1: none. One that stands twice is
        trained twice.
      weight: factor of its gradient; 0: it counts in the statistics and is not trained.
      counted: whether it counts in the statistics of its group.
      of_roles: of each role, the place of the pool that each place of its groups takes, likewise;
        not named: every place that it has drawn in.
      rewards: of each role, what the completions in its groups are paid; nan where there is none.
      metrics: what the plan says of the step, by name.
    """

    place: Int[ndarray, "P G"]
    weight: Float[ndarray, "P G"] | None = None
    counted: Bool[ndarray, "P G"] | None = None
    of_roles: Mapping[str, Int[ndarray, "P M"]] = dataclasses.field(default_factory=dict)
    rewards: Mapping[str, Float[ndarray, "P M"]] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked, and what becomes of it.

    Attributes:
      places: N.
      kept: G.
      width: completions of a group on average: rows of the learner are so wide.
      wants: the next round, given what has been seen; None: there is none.
      finish: the groups, when there is none.
      reads: whether `wants` or `finish` look at rewards.
      uneven: whether groups differ in size, or in the prompts that they are trained under.
      marks: whether it is told of completions how they stand in their groups.
      groups: groups of G that the places of a prompt make, each with statistics of its own.
      roles: further policies, with weights and an optimizer of their own, and the places of the
        pool that each draws. They are compared with each other, prompt by prompt, by what `finish`
        pays them, and no reward function sees them.
      aligned: whether groups of roles have as many places in every step, each with a completion
        under a prompt of its own or none: then rows of their learners hold one and are as many.
    """

    places: int
    kept: int
    width: int
    wants: Callable[[Seen], Round | None]
    finish: Callable[[Seen], Finished]
    reads: bool = False
    uneven: bool = False
    marks: bool = True
    groups: int = 1
    roles: Mapping[str, range] = dataclasses.field(default_factory=dict)
    aligned: bool = False


def unsolved(m: Method, seen: Seen, size: int) -> Bool[ndarray, " P"]:
    """True for groups whose first completions all have rewards of at most `unsolved_at`."""
    assert seen.rewards is not None
    rewards = seen.rewards[:, :size]
    best = np.where(np.isnan(rewards), -np.inf, rewards).max(axis=1)
    return (best <= m.unsolved_at) & ~np.isnan(rewards).all(axis=1)


def as_drawn(prompts: int, places: int) -> Finished:
    """Every completion in the place it was drawn in."""
    return Finished(place=np.broadcast_to(np.arange(places), (prompts, places)).copy())


def uniform(size: int, wants: Callable[[Seen], Sequence[Want]] | None = None) -> Plan:
    """One round of whole groups.

    Args:
      size: completions of a group.
      wants: what is wanted in it, if not plain completions.
    """

    def ask(seen: Seen) -> Round | None:
        if seen.rounds:
            return None
        return Round("first", () if wants is None else wants(seen))

    def finish(seen: Seen) -> Finished:
        return as_drawn(len(seen.prompt_ids), size)

    return Plan(places=size, kept=size, width=size, wants=ask, finish=finish, marks=False)


def then_if(
    before: Plan,
    name: str,
    when: Callable[[Seen], Bool[ndarray, " P"]],
    then: Callable[[Seen, int], Sequence[Want]],
    *,
    more: int,
    finish: Callable[[Seen, Int[ndarray, "P G"], Bool[ndarray, " P"]], Finished],
    extra: int = 0,
    reads: bool = True,
    role: str = "",
) -> Plan:
    """A plan, and one round more for groups that a predicate names.

    Args:
      before: the plan.
      name: of the round.
      when: True for groups that are asked again, judged by what was seen when `before` had ended.
      then: what is wanted of such a group; its places are those from `before.places` on.
      more: places that it takes.
      finish: gives the groups, from the places that `before` gives them (-1 in `extra` ones) and
        from who was asked again.
      extra: places that a group may have beyond those of `before`.
      reads: whether one of the functions looks at rewards.
      role: who draws the round, if not the policy; the places are its own.
    """
    places, kept = before.places + more, before.kept + extra

    def ask(seen: Seen) -> Round | None:
        if (first := before.wants(seen)) is not None or name in seen.rounds:
            return first
        asked = np.flatnonzero(when(seen))
        wants = [w for p in asked for w in then(seen, int(p))]
        return Round(name, wants, role) if wants else None

    def ended(seen: Seen) -> Finished:
        place = before.finish(seen).place
        place = np.pad(place, [(0, 0), (0, kept - place.shape[1])], constant_values=-1)
        again = np.any(seen.lengths[:, before.places : places] > 0, axis=1)
        return finish(seen, place, again)

    return Plan(
        places=places,
        kept=kept,
        width=before.width + extra,
        wants=ask,
        finish=ended,
        reads=reads or before.reads,
        uneven=True,
        roles={**before.roles, role: range(before.places, places)} if role else before.roles,
    )


def allocate(m: Method, size: int, prompts: int) -> Plan:
    """Groups of the sizes that the ALLOCATE slot gives, in one round or in as many as it takes.

    The budget is `size` completions a prompt. A sequential rule may stop before it is spent.

    Args:
      m: the method.
      size: completions of a group on average.
      prompts: of a step.
    """
    places = min(m.rollouts_max, m.rollouts_min + prompts * (size - m.rollouts_min))

    def ask(seen: Seen) -> Round | None:
        left = len(seen.drawn) * size - int(seen.drawn.sum())
        if not left or (seen.rounds and not sequential(m)):
            return None
        known = tracked_estimates(
            m, seen.tracked, seen.prompt_ids, rewards=seen.rewards, sampled=seen.drawn
        )
        counts = allocation(m, known, left)
        if not counts.any():
            return None
        if (seen.drawn + counts).max() > places:
            raise ValueError(
                f"method {m.name!r}: allocate {m.allocate!r} gives a prompt "
                f"{(seen.drawn + counts).max()} completions, more than the {places} there is room "
                "for"
            )
        wants = [
            Want(p, int(first), int(n))
            for p, (first, n) in enumerate(zip(seen.drawn, counts, strict=True))
        ]
        return Round(f"share {len(seen.rounds)}", wants)

    return Plan(
        places=places,
        kept=places,
        width=size,
        wants=ask,
        finish=lambda seen: as_drawn(len(seen.prompt_ids), places),
        reads=sequential(m),
        uneven=True,
        marks=False,
    )


def branch(size: int, cuts: Callable[[Seen, int], Sequence[int]]) -> Plan:
    """One completion, the path, and others that leave it at given places, by the exit phrase.

    In a group they stand in the order of their exits, the path last.

    Args:
      size: completions of a group, the path among them.
      cuts: tokens of a prompt's path before each exit, at most `size - 1` and rising.
    """

    def ask(seen: Seen) -> Round | None:
        prompts = range(len(seen.prompt_ids))
        if not seen.rounds:
            return Round("path", [Want(p, 0, 1) for p in prompts])
        wants = [
            Want(p, 1 + i, 1, begin="path", tokens=cut, phrase=True)
            for p in prompts
            for i, cut in enumerate(cuts(seen, p))
        ]
        return Round("exits", wants) if wants and len(seen.rounds) == 1 else None

    def finish(seen: Seen) -> Finished:
        order = np.broadcast_to(np.append(np.arange(1, size), 0), seen.lengths[:, :size].shape)
        there = np.take_along_axis(seen.lengths, order, axis=1) > 0
        return Finished(place=np.where(there, order, -1))

    return Plan(places=size, kept=size, width=size, wants=ask, finish=finish, uneven=True)
