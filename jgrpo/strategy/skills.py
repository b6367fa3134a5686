"""The library of skills: skills as text, and what `TrainState` keeps of it, exactly.

Letters: N places, those of the cache before those of the reservoir, L characters of the longest
skill, P prompts of a step, G completions per prompt.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from jgrpo import algo
from jgrpo.algo.skills import Library, Skill, arise_library, arise_reward
from jgrpo.types import AnyArray, Rollouts

MOST_CHARACTERS = 350
"""Of what a skill says, its JSON not counted (the released code's cap; the paper's is 220)."""
WIDTH = 512
"""Most characters of a skill as JSON."""
_FIELDS = ("skill_name", "problem_type", "key_insight", "method", "check")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_STEPS = range(2, 4)
_SHOWN = 140


class Chosen(NamedTuple):
    """The skill that was chosen for a prompt.

    Attributes:
      number: its number in the cache, from 1; 0: none was.
      text: the skill as JSON; "" for none.
    """

    number: int = 0
    text: str = ""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shelf:
    """A library as arrays.

    Attributes:
      text: code points of each skill as JSON; all 0: the place is empty.
      utility: its utility, in reward units.
      count: groups that have worked with it.
    """

    text: Int[AnyArray, "N L"]
    utility: Float[AnyArray, " N"]
    count: Int[AnyArray, " N"]


def skill_of(text: str, utility: float = 0.0) -> Skill | None:
    """The skill in a text: its first JSON object, if that is a skill; None if it is not.

    A skill has a `skill_name` in snake case of at most 40 characters, a `key_insight`, a `method`
    of 2 or 3 steps and, if it likes, a `problem_type` and a `check`; they are texts of at most 350
    characters together.

    Args:
      text: what was written.
      utility: of the skill.

    Example:
      >>> skill_of('So: {"skill_name": "halve", "key_insight": "x", "method": ["a", "b"]}').text
      '{"skill_name":"halve","key_insight":"x","method":["a","b"]}'
    """
    start = text.find("{")
    try:
        said = json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else {}
    except (ValueError, RecursionError):
        return None
    return _valid({name: said[name] for name in _FIELDS if name in said}, utility)


def _valid(said: Mapping[str, Any], utility: float) -> Skill | None:
    """The skill that these fields make; None if they make none."""
    name, method = said.get("skill_name"), said.get("method")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(method, list):
        return None
    texts = [*(value for field, value in said.items() if field != "method"), *method]
    if len(method) not in _STEPS or not said.get("key_insight"):
        return None
    if not all(isinstance(x, str) and x.strip() for x in texts):
        return None
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    fits = sum(map(len, texts)) <= MOST_CHARACTERS and len(text) <= WIDTH
    if not fits or re.search("[\ud800-\udfff]", text):
        return None
    return Skill(name=name, text=text, utility=utility)


def abstract(trace: str) -> Skill | None:
    """A skill that tells the beginning of a right completion, where the policy has written none.

    All of them share a name, so a library holds one at most. None of a completion without text.

    Args:
      trace: the completion.

    References:
      ARISE, arXiv:2603.16060, `trace_abstract_fallback`. Departs: the words are ours.
    """
    shown = "".join(c for c in " ".join(trace.split()) if c.isprintable())[:_SHOWN]
    said = {
        "skill_name": "trace_abstract",
        "key_insight": f"Solved so: {shown}",
        "method": ["Go the same way.", "Check every step."],
    }
    return _valid(said, 0.0) if shown else None


def fresh(method: algo.Method, seeds: str) -> Shelf:
    """The library before the first step.

    Args:
      method: for its sizes.
      seeds: file with a JSON list of skills; "": there are none.

    Raises:
      ValueError: if the file cannot be read, or holds something else, two skills of one name or
        more than the cache has room for.
    """
    if not seeds:
        return _packed(method, Library())
    try:
        said = json.loads(Path(seeds).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"data.skills: {seeds!r} cannot be read as JSON: {error}") from error
    most = method.skill_cache
    if not isinstance(said, list) or len(said) > most:
        what = f"{len(said)} of them" if isinstance(said, list) else type(said).__name__
        raise ValueError(
            f"data.skills: {seeds!r} must hold a list of at most {most} skills "
            f"(method.skill_cache), got {what}"
        )
    found = dict[str, Skill]()
    for number, one in enumerate(said, start=1):
        skill = skill_of(json.dumps(one)) if isinstance(one, dict) else None
        if skill is None or skill.name in found:
            raise ValueError(
                f"data.skills: {seeds!r}, number {number}: must be an object with skill_name (snake"
                " case, no other's), key_insight and method (2 or 3 steps), all of at most "
                f"{MOST_CHARACTERS} characters, got {json.dumps(one)[:80]}"
            )
        found[skill.name] = skill
    return _packed(method, Library(tuple(found.values())))


def library_of(method: algo.Method, shelf: Shelf) -> Library:
    """The library that arrays hold.

    Args:
      method: for its sizes.
      shelf: the arrays, on the host.
    """
    texts = ["".join(map(chr, row[row > 0].tolist())) for row in np.asarray(shelf.text)]
    found = [
        Skill(name=json.loads(text)["skill_name"], text=text, utility=float(u), count=int(n))
        if text
        else None
        for text, u, n in zip(texts, shelf.utility, shelf.count, strict=True)
    ]
    cache, reservoir = found[: method.skill_cache], found[method.skill_cache :]
    return Library(*(tuple(s for s in part if s is not None) for part in (cache, reservoir)))


def _packed(method: algo.Method, library: Library) -> Shelf:
    """The arrays of a library."""
    places = method.skill_cache + method.skill_reservoir
    text = np.zeros((places, WIDTH), np.int32)
    utility, count = np.zeros(places, np.float32), np.zeros(places, np.int32)
    for first, skills in ((0, library.cache), (method.skill_cache, library.reservoir)):
        for at, skill in enumerate(skills, start=first):
            text[at, : len(skill.text)] = [ord(c) for c in skill.text]
            utility[at], count[at] = skill.utility, skill.count
    return Shelf(text=text, utility=utility, count=count)


def observed(
    method: algo.Method,
    shelf: Shelf,
    rollouts: Rollouts,
    rewards: Float[ndarray, "P G"],
    valid: Bool[ndarray, "P G"],
    step: int,
    new: Skill | None,
) -> Shelf:
    """The library after a step.

    Args:
      method: the method.
      shelf: the library before, on the host.
      rollouts: of the step; their level is the number of the skill they worked with.
      rewards: of the reward functions.
      valid: completions that count.
      step: number of the step, from 0.
      new: the skill that it has brought, or None.
    """
    library, numbers = library_of(method, shelf), used(rollouts)
    skilled = np.broadcast_to(numbers[:, None] > 0, rewards.shape)
    now = np.asarray(step, np.int32)
    paid = np.asarray(arise_reward(method, rewards.astype(np.float32), skilled, now), np.float64)
    by_name = dict[str, list[float]]()
    for p in np.flatnonzero((numbers > 0) & valid.any(axis=1)):
        mean = float(paid[p][valid[p]].mean())
        by_name.setdefault(library.cache[numbers[p] - 1].name, []).append(mean)
    return _packed(method, arise_library(method, library, by_name, new))


def used(rollouts: Rollouts) -> Int[ndarray, " P"]:
    """The number in the cache, from 1, of the skill that each group worked with; 0: none."""
    assert rollouts.standing is not None
    return np.asarray(rollouts.standing.level).max(axis=1)


def library_metrics(shelf: Shelf, rollouts: Rollouts) -> dict[str, float]:
    """Which groups of a step worked with a skill, and what the library is after it.

    Args:
      shelf: after the step.
      rollouts: of the step.
    """
    there = np.asarray(shelf.text).any(axis=1)
    utilities: Sequence[float] = np.asarray(shelf.utility, np.float64)[there].tolist()
    return {
        "skill/used_fraction": float((used(rollouts) > 0).mean()),
        "skill/utility_mean": float(np.mean(utilities)) if utilities else 0.0,
        "skill/library_size": float(len(utilities)),
    }
