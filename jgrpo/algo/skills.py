"""A library of skills that the policy chooses from, works with and adds to (ARISE).

A skill is a short text with a name. Those of the *cache* may be chosen; the *reservoir* behind it
keeps what the cache had no room for. All rules are those of a step, on the host in float64 but for
the reward. Letters: P prompts, G completions per prompt, C skills of the cache.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from jgrpo.algo.choice import Choice
from jgrpo.algo.rounds import Plan, Seen, Want, uniform
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side, required
from jgrpo.types import AnyArray

KEPT = 0.9
"""Part of its utility that a skill keeps when it is used; the rest comes from the reward."""
_LOWEST = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skill:
    """A skill and how it has fared.

    Attributes:
      name: no two of a library share it.
      text: what the policy reads.
      utility: moving mean of what completions that worked with it were paid, in reward units.
      count: groups that have worked with it.
    """

    name: str
    text: str
    utility: float
    count: int = 0


class Library(NamedTuple):
    """The skills there are, in the order in which they came.

    Attributes:
      cache: those that may be chosen.
      reservoir: those that may come back.
    """

    cache: tuple[Skill, ...] = ()
    reservoir: tuple[Skill, ...] = ()

    @property
    def names(self) -> set[str]:
        """The names of all."""
        return {skill.name for skill in (*self.cache, *self.reservoir)}


def arise_select(
    m: Method, scores: Float[ndarray, "P C"], noise: Float[ndarray, "P 2"]
) -> Int[ndarray, " P"]:
    """The skill that the policy likes best for each prompt; -1: it is sure of none.

    p = softmax of the scores. None if max p < skill_confidence; else, with chance skill_explore,
    any skill; else the one of the highest score, the first of equals.

    Args:
      m: reads `skill_confidence` and `skill_explore`.
      scores: log-prob of each skill given the prompt, mean over its tokens, in nats; finite, the
        skill of the highest utility first.
      noise: uniform numbers in [0, 1): whether to explore, and where.

    References:
      ARISE, arXiv:2603.16060; Skylanding/ARISE `skill_manager.py`. Departs: none.

    Example:
      >>> from jgrpo.algo import METHODS
      >>> scores = np.array([[-1.0, -2.0, -2.5], [-1.0, -1.0, -1.0]])
      >>> arise_select(METHODS["arise"], scores, np.full((2, 2), 0.5)).tolist()
      [0, -1]
    """
    prompts, skills = scores.shape
    if not skills:
        return np.full(prompts, -1)
    weight = np.exp(scores - scores.max(axis=1, keepdims=True))
    best = weight.max(axis=1) / weight.sum(axis=1)
    explored = (noise[:, 1] * skills).astype(int)
    choice = np.where(noise[:, 0] < m.skill_explore, explored, scores.argmax(axis=1))
    return np.where(best < m.skill_confidence, -1, choice)


def arise_reward(
    m: Method,
    rewards: Float[AnyArray, "P G"],
    used: Bool[AnyArray, "P G"],
    step: Int[AnyArray, ""],
) -> Float[Array, "P G"]:
    """One more for right completions that worked with a skill, once skills are in use.

    Args:
      m: reads `skill_start_steps`, the steps before skills are used, and `max_value`, from which
        on a reward is right.
      rewards: 1 where right.
      used: whether a skill stood before the prompt.
      step: number of the step, from 0.

    References:
      ARISE, arXiv:2603.16060; `reward.py`. Departs: none.
    """
    paid = jnp.asarray(used) & (rewards >= m.max_value) & (step >= m.skill_start_steps)
    return jnp.asarray(rewards) + paid.astype(jnp.float32)


def skill_bonus(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """`arise_reward` of the step.

    Raises:
      ValueError: if `skilled` or `step` is missing.
    """
    used, step = required(side.skilled, "skilled", m), required(side.step, "step", m)
    return arise_reward(m, rewards, used, step)


def arise_rs(unaided: bool, right: bool) -> float:
    """Utility of a new skill, from one completion that works with it.

    Args:
      unaided: whether a completion of the prompt was right without any skill.
      right: whether the one with the new skill is.

    References:
      ARISE, arXiv:2603.16060; `reward.py`. Departs: none.

    Example:
      >>> [arise_rs(u, r) for u, r in ((True, False), (False, False), (True, True), (False, True))]
      [-1.0, 0.0, 0.5, 1.0]
    """
    if right:
        return 0.5 if unaided else 1.0
    return -1.0 if unaided else 0.0


def arise_ema(utility: float, reward: float) -> float:
    """The utility of a skill after a step that it was used in: 0.9 of it, 0.1 of the reward.

    Example:
      >>> round(arise_ema(0.5, 2.0), 6)
      0.65
    """
    return KEPT * utility + (1.0 - KEPT) * reward


def arise_library(
    m: Method, library: Library, rewards: Mapping[str, Sequence[float]], new: Skill | None
) -> Library:
    """The library after a step: update, add, evict, load, delete, in this order.

    UPDATE: `arise_ema` of the skills used. ADD: the new skill goes to the cache, unless its name is
    taken. EVICT: while the cache is too large, its lowest utility goes to the reservoir. LOAD: the
    best of the reservoir changes places with the worst of the cache if it is strictly better.
    DELETE: of the reservoir, skills never used of a utility strictly below the
    (max(0, int(n / 10) - 1))th of its n sorted ones, from 0; then its lowest while it is too large.
    Of equal utilities the oldest is meant.

    Args:
      m: reads `skill_cache` and `skill_reservoir`, the sizes.
      library: before the step.
      rewards: by the name of each skill used, the mean reward of every group that worked with it.
      new: a skill that the step has brought, or None.

    References:
      ARISE, arXiv:2603.16060; `skill_library.py`. Departs: a skill that several prompts of a step
      chose is updated once, with the mean of what each paid (the release has one prompt a step).
    """
    cache = [_updated(skill, rewards.get(skill.name, ())) for skill in library.cache]
    reservoir = list(library.reservoir)
    if new is not None and new.name not in library.names:
        cache.append(new)
    while len(cache) > m.skill_cache:
        reservoir.append(cache.pop(_worst(cache)))
    if cache and reservoir:
        best, worst = _best(reservoir), _worst(cache)
        if reservoir[best].utility > cache[worst].utility:
            reservoir[best], cache[worst] = cache[worst], reservoir[best]
    if reservoir:
        ordered = sorted(skill.utility for skill in reservoir)
        least = ordered[max(0, int(len(ordered) * _LOWEST) - 1)]
        reservoir = [skill for skill in reservoir if skill.count or skill.utility >= least]
    while len(reservoir) > m.skill_reservoir:
        reservoir.pop(_worst(reservoir))
    return Library(tuple(cache), tuple(reservoir))


def _updated(skill: Skill, rewards: Sequence[float]) -> Skill:
    if not rewards:
        return skill
    utility = arise_ema(skill.utility, float(np.mean(rewards)))
    return dataclasses.replace(skill, utility=utility, count=skill.count + len(rewards))


def _worst(skills: Sequence[Skill]) -> int:
    return min(range(len(skills)), key=lambda i: skills[i].utility)


def _best(skills: Sequence[Skill]) -> int:
    return max(range(len(skills)), key=lambda i: skills[i].utility)


def skilled(m: Method, size: int, prompts: int) -> Plan:
    """Whole groups, each under the skill that was chosen for its prompt, in training too.

    References:
      ARISE, arXiv:2603.16060; Skylanding/ARISE.
    """

    def wants(seen: Seen) -> list[Want]:
        assert seen.skills is not None
        return [
            Want(p, 0, size, context="skill", of=number) if number else Want(p, 0, size)
            for p, number in enumerate(seen.skills.tolist())
        ]

    return dataclasses.replace(uniform(size, wants), uneven=True, marks=True)


_WATCH = ("skill/used_fraction", "skill/utility_mean", "skill/library_size", "skill/verified")
SKILL_PLANS: Mapping[str, Choice] = {
    "skill": Choice(
        function=skilled,
        formula="after skill_start_steps: the policy scores each skill s of the cache by its mean"
        " log-prob given q; if the largest softmax is at least skill_confidence, the best one (with"
        " chance skill_explore any) stands before q for the whole group, and then u_s <- 0.9 u_s +"
        " 0.1 mean R'. In every step the policy makes a skill of right completions of one prompt,"
        " whose u is -1, 0, 0.5 or 1 by one completion that works with it",
        constants=(
            *("skill_start_steps", "skill_confidence", "skill_explore"),
            *("skill_cache", "skill_reservoir", "max_value"),
        ),
        needs=("rounds", "skills"),
        watch=(*_WATCH, "plan/drawn_tokens"),
        pitfalls=(
            "A large cache of skills that the policy likes alike is never used: of 10, each has a "
            "softmax of 0.1, below skill_confidence.",
            "Held-out prompts are asked without a skill.",
        ),
    ),
}
SKILL_SHAPES: Mapping[str, Choice] = {
    "skill_bonus": Choice(
        function=skill_bonus,
        formula="R' = R + [step > skill_start_steps, a skill was used and R >= max_value]",
        constants=("skill_start_steps", "max_value"),
        needs=("skilled", "step"),
        watch=("skill/used_fraction", "skill/utility_mean"),
        pitfalls=(
            "A group shares its skill, so the bonus doubles what is right against what is wrong, "
            "and a scale such as group_std takes that out again: what it moves is the utilities.",
        ),
    ),
}
