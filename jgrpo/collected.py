"""The scored completions of a step, those of several sampling rounds put together.

Letters: P prompts, G places of a group, N = P*G rows, prompt by prompt.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from jgrpo.algo.skills import Skill
from jgrpo.joining import behind
from jgrpo.rewards.score import Scores
from jgrpo.roles import Written
from jgrpo.rollout.meter import Meter
from jgrpo.types import Example, Rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """What a step trains on, before any advantage.

    Attributes:
      examples: the prompts as text.
      prompt_ids: their numbers in the task's training data.
      rollouts: their completions.
      completion_ids: the token ids of the N completions, without padding; empty where none stands.
      completions: the same as text.
      scores: rewards of the N completions.
      reference: True for completions that are worked solutions; None if none is.
      kept: False for groups that only fill the batch up.
      rounds: sampling rounds it took.
      cursor: prompts taken from the run's order, these included.
      rollout_s: seconds spent sampling.
      meter: what they went into.
      reward_s: seconds spent scoring after the sampling, which much of it overlaps.
      roles: what the roles of the plan have drawn, by name.
      told: what the plan says of the step, by the name of the metric.
      skill: a skill that the step has brought; None: there is none.
    """

    examples: Sequence[Example]
    prompt_ids: Int[ndarray, " P"]
    rollouts: Rollouts
    completion_ids: Sequence[list[int]]
    completions: Sequence[str]
    scores: Scores
    reference: Bool[ndarray, "P G"] | None
    kept: Bool[ndarray, " P"]
    rounds: int
    cursor: int
    rollout_s: float
    meter: Meter
    reward_s: float
    roles: Mapping[str, Written] = dataclasses.field(default_factory=dict)
    told: Mapping[str, float] = dataclasses.field(default_factory=dict)
    skill: Skill | None = None

    @property
    def rewards(self) -> Float[ndarray, "P G"]:
        """Total rewards by group."""
        return self.scores.total.reshape(self.rollouts.mask.shape[:2])

    @property
    def present(self) -> Bool[ndarray, "P G"]:
        """False at places of groups in which no completion stands."""
        return self.scores.asked.reshape(self.rollouts.mask.shape[:2])

    @property
    def correct(self) -> Bool[ndarray, "P G"]:
        """True for completions to which the first reward function gave 1 or more."""
        return (self.scores.columns[:, 0] >= 1.0).reshape(self.rollouts.mask.shape[:2])

    @property
    def texts(self) -> list[list[str]]:
        """The completions as text, by group."""
        size = self.rollouts.mask.shape[1]
        return [list(self.completions[i : i + size]) for i in range(0, len(self.completions), size)]

    @property
    def valid(self) -> Bool[ndarray, "P G"]:
        """False where no reward function gave a number, and where no completion stands."""
        return self.scores.valid.reshape(self.rollouts.mask.shape[:2])


def joined(rounds: Sequence[Collected]) -> Collected:
    """Puts the groups of several rounds behind each other."""
    return Collected(
        examples=[example for r in rounds for example in r.examples],
        prompt_ids=np.concatenate([r.prompt_ids for r in rounds]),
        rollouts=behind([r.rollouts for r in rounds]),
        completion_ids=[ids for r in rounds for ids in r.completion_ids],
        completions=[text for r in rounds for text in r.completions],
        scores=_join_scores([r.scores for r in rounds]),
        reference=_join_references([r.reference for r in rounds]),
        kept=np.concatenate([r.kept for r in rounds]),
        rounds=len(rounds),
        cursor=rounds[-1].cursor,
        rollout_s=sum(r.rollout_s for r in rounds),
        meter=sum((r.meter for r in rounds), start=Meter()),
        reward_s=sum(r.reward_s for r in rounds),
        told={name: float(np.mean([r.told[name] for r in rounds])) for name in rounds[0].told},
    )


def selected(collected: Collected, wanted: int) -> Collected:
    """Takes the kept groups in their order, then others, up to the number wanted."""
    best = np.argsort(~collected.kept, kind="stable")[:wanted]
    size = collected.rollouts.mask.shape[1]
    rows = (best[:, None] * size + np.arange(size)).reshape(-1)
    return dataclasses.replace(
        collected,
        examples=[collected.examples[i] for i in best.tolist()],
        prompt_ids=collected.prompt_ids[best],
        rollouts=jax.tree.map(lambda x: np.asarray(x)[best], collected.rollouts),
        completion_ids=chosen(collected.completion_ids, rows, []),
        completions=chosen(collected.completions, rows, ""),
        scores=collected.scores.taken(rows),
        reference=None if collected.reference is None else collected.reference[best],
        kept=collected.kept[best],
    )


def numbers(place: Int[ndarray, "P G"], places: int) -> Int[ndarray, " N"]:
    """Numbers, pool by pool, of the completions in each place of the groups; -1: none."""
    begin = np.arange(len(place))[:, None] * places
    return np.where(place >= 0, begin + place, -1).reshape(-1)


def chosen(values: Sequence[Any], rows: Int[ndarray, " N"], nothing: Any) -> list[Any]:
    """What stands at these numbers; `nothing` at -1."""
    return [values[i] if i >= 0 else nothing for i in rows.tolist()]


def _join_references(
    parts: Sequence[Bool[ndarray, "P G"] | None],
) -> Bool[ndarray, "Q G"] | None:
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


def _join_scores(parts: Sequence[Scores]) -> Scores:
    return Scores(
        names=parts[0].names,
        columns=np.concatenate([part.columns for part in parts]),
        total=np.concatenate([part.total for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
        asked=np.concatenate([part.asked for part in parts]),
        failed={
            name: np.concatenate([part.failed[name] for part in parts]) for name in parts[0].failed
        },
        failures=tuple(failure for part in parts for failure in part.failures),
        calls=sum(part.calls for part in parts),
        calls_per_s=sum(part.calls_per_s for part in parts) / len(parts),
    )
