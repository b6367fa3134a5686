"""A step's completions, round by round, as the method's plan asks for them.

Letters: P prompts, N places of the pool, G places of a group.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped
from numpy import ndarray

from jgrpo import algo
from jgrpo.algo.delegating import SUB
from jgrpo.algo.hinting import HINTER
from jgrpo.buckets import bucket
from jgrpo.config import Config
from jgrpo.contexts import Words
from jgrpo.joining import over
from jgrpo.rewards.experts import Answer
from jgrpo.rewards.rubrics import RUBRIC
from jgrpo.rewards.score import Scores
from jgrpo.strategy.asks import Asks
from jgrpo.strategy.guidance import tokens_of
from jgrpo.types import AnyArray, Contexts, Prompts, Rollouts, Standing

Draw = Callable[[Asks | None, str], Rollouts]
Rely = Callable[[Rollouts, Contexts, Bool[ndarray, "P N"]], Float[ndarray, "P N"]]
Judge = Callable[[Sequence[Answer]], Float[ndarray, " A"]]
Stop = Callable[[Rollouts], Int[ndarray, "P N"]]
Score = Callable[[Rollouts], tuple[list[list[int]], list[str], Scores]]


class Drawn(NamedTuple):
    """What the rounds of a step have given.

    Attributes:
      pool: every completion, in its place.
      finished: the groups that the plan makes of it.
      roles: the completions of each role of the plan, a group a prompt.
    """

    pool: Rollouts
    finished: algo.Finished
    roles: Mapping[str, Rollouts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """What the rounds of a step need.

    Attributes:
      cfg: the run's config.
      prompts: what is asked.
      prompt_ids: the prompts' numbers in the task's training data.
      words: makes tokens of what is wanted.
      draw: samples what is asked, None: whole groups, of a role of the plan or, "", the policy.
      score: gives the rewards of what has been drawn.
      rely: how much completions rely on their contexts (`algo.Seen.reliance`).
      judge: what experts give answers to calls.
      stop: where a preference model would end completions (`algo.Seen.stops`).
      step: number of the step.
      key: names the noise of the plan.
      strategy: the states of the method's slots.
    """

    cfg: Config
    prompts: Prompts
    prompt_ids: Int[ndarray, " P"]
    words: Words
    draw: Draw
    score: Score
    rely: Rely
    judge: Judge
    stop: Stop
    step: int
    key: Key[Array, ""]
    strategy: Mapping[str, PyTree]

    def rounds(self) -> Drawn:
        """Draws until the plan wants nothing more."""
        plan, names = self.cfg.plan, list[str]()
        pool, marks = None, _unmarked(len(self.prompt_ids), plan.places)
        seen = self._seen(names, pool)
        while (wanted := plan.wants(seen)) is not None:
            names.append(wanted.name)
            asks = self.words.asks(wanted, pool) if wanted.wants else None
            drawn = _of_places(self.draw(asks, wanted.role), plan.places)
            pool = drawn if pool is None else over([pool, drawn])
            _mark(marks, wanted, asks, len(names))
            seen = self._seen(names, pool)
        assert pool is not None
        if seen.gates is not None:
            seen = dataclasses.replace(seen, reliance=self._reliance(marks, pool, seen))
        if seen.calls is not None:
            seen = dataclasses.replace(seen, **self._judged(pool))
        finished = plan.finish(seen)
        roles = {
            name: _of_role(marks, plan, pool, finished.of_roles.get(name, _drawn_in(pool, places)))
            for name, places in plan.roles.items()
        }
        if plan.marks:
            standing = _standing(marks, finished, plan, pool)
            pool = dataclasses.replace(pool, standing=standing)
        return Drawn(pool, finished, roles)

    def _reliance(self, marks: "_Marks", pool: Rollouts, seen: algo.Seen) -> Float[ndarray, "P N"]:
        """How much right completions rely on what stood around their prompts."""
        assert seen.rewards is not None
        wanted = (marks.trained > 0) & (seen.rewards > self.cfg.method.unsolved_at)
        contexts = _contexts(marks, np.where(wanted, np.arange(wanted.shape[1]), -1))
        if contexts is None:
            return np.zeros(wanted.shape)
        return self.rely(pool, contexts, wanted)

    def _judged(self, pool: Rollouts) -> dict[str, Any]:
        """What is known of completions and answers in the end; fields of `algo.Seen`."""
        shape = pool.mask.shape[:2]
        answers = self.words.answers(pool, self.cfg.plan.roles[SUB])
        formed, judged = np.zeros(shape, bool), np.full(shape, np.nan)
        for at, given in zip(answers, self.judge([*answers.values()]), strict=True):
            formed[at], judged[at] = True, given
        columns = self.score(pool)[2].columns.reshape(*shape, -1).astype(np.float64)
        return {"columns": columns, "formed": formed, "judged": judged}

    def _seen(self, names: list[str], pool: Rollouts | None) -> algo.Seen:
        """What the plan may look at."""
        plan, needed = self.cfg.plan, algo.needs(self.cfg.method)
        shape = (len(self.prompt_ids), plan.places)
        lengths = np.zeros(shape, np.int64) if pool is None else np.asarray(pool.mask).sum(-1)
        rewards = rubric = None
        if plan.reads and pool is not None:
            scores = self.score(pool)[2]
            if "rubric" in needed:
                rubric = scores.columns[:, scores.names.index(RUBRIC)].reshape(shape).astype(float)
            rewards = np.where(scores.valid, scores.total, np.nan).astype(np.float64).reshape(shape)
        limit, guidance, solutions = self.cfg.rollout.max_completion_tokens, 0, None
        if "solutions" in needed:
            solutions = np.array([len(tokens) for tokens in self.words.solutions])
        stored = np.zeros(shape[0], np.int64)
        stored[: len(self.words.stored)] = [len(tokens) for tokens, _ in self.words.stored]
        if "guidance" in needed:
            guidance = min(tokens_of(self.strategy["guidance"]), limit - 1)
        predicted = gates = calls = skills = stops = None
        if "skills" in needed:
            skills = np.array([chosen.number for chosen in self.words.skills], np.int64)
        if "predictions" in needed and pool is not None:
            predicted = self.words.predicted(pool)
        if "hints" in needed and pool is not None:
            gates = self.words.gates(pool, plan.roles[HINTER])
        if "calls" in needed and pool is not None:
            calls = self.words.calls(pool, range(plan.roles[SUB].start))
        if "stops" in needed and pool is not None and len(names) == 1:
            stops = self.stop(pool)
        return algo.Seen(
            rounds=tuple(names),
            step=self.step,
            steps=self.cfg.run.steps,
            room=limit - 1 - (len(self.words.phrase) if plan.marks else 0),
            prompt_ids=self.prompt_ids,
            drawn=(lengths > 0).sum(axis=1),
            noise=self._noise,
            lengths=lengths,
            rewards=rewards,
            rubric=rubric,
            solutions=solutions,
            stored=stored,
            guidance=guidance,
            tracked=self.strategy.get("tracker", {}),
            predicted=predicted,
            skills=skills,
            gates=gates,
            calls=calls,
            stops=stops,
        )

    @property
    def _noise(self) -> Float[ndarray, "P N"]:
        """Uniform numbers that depend on the step, a prompt's number in the run and a place."""
        if not self.cfg.plan.marks:
            return np.zeros((len(self.prompt_ids), self.cfg.plan.places))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, np.asarray(self.prompts.uid))
        draw = jax.vmap(lambda key: jax.random.uniform(key, (self.cfg.plan.places,)))
        return np.asarray(draw(keys), np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Marks:
    """What is noted of each place of the pool."""

    round: Int[ndarray, "P N"]
    level: Int[ndarray, "P N"]
    ratio: Int[ndarray, "P N"]
    likelihood: Float[ndarray, "P N"]
    asked: Int[ndarray, "P N"]
    trained: Int[ndarray, "P N"]
    contexts: list[list[list[int]]]


def _unmarked(prompts: int, places: int) -> _Marks:
    zeros = lambda: np.zeros((prompts, places), np.int64)  # noqa: E731
    return _Marks(
        round=zeros(),
        level=zeros(),
        ratio=zeros(),
        likelihood=zeros().astype(np.float32),
        asked=zeros(),
        trained=zeros(),
        contexts=[[] for _ in range(prompts)],
    )


def _mark(marks: _Marks, wanted: algo.Round, asks: Asks | None, number: int) -> None:
    """Notes what a round has drawn."""
    if asks is None:
        marks.round[:] = number
        return
    for i, want in enumerate(wanted.wants):
        p, at = want.prompt, (want.prompt, slice(want.first, want.first + want.count))
        marks.round[at], marks.ratio[at] = number, want.ratio
        marks.likelihood[at] = want.likelihood
        shows = want.context in ("draft", "criteria", "teacher", "hinter", "called")
        marks.level[at] = want.of + shows if want.context not in ("", "main") else 0
        if asks.contexts and (context := asks.contexts[i]) is not None:
            if context not in marks.contexts[p]:
                marks.contexts[p].append(list(context))
            marks.asked[at] = marks.contexts[p].index(list(context)) + 1
            marks.trained[at] = marks.asked[at] if want.kept else 0


def _standing(marks: _Marks, finished: algo.Finished, plan: algo.Plan, pool: Rollouts) -> Standing:
    """How the completions of the groups stand in them."""
    place = finished.place
    ones = np.ones(place.shape, np.float32)
    likelihood = picked(marks.likelihood, place)
    counted = np.ones(place.shape, bool) if finished.counted is None else finished.counted
    first = np.where(place >= 0, place, np.arange(place.shape[1]))
    # A plan of exits puts its path last: nothing is replaced where all that was drawn is there.
    drawn = np.asarray(pool.mask).any(-1)
    left_out = np.asarray(drawn.sum(axis=1) > (place >= 0).sum(axis=1))[:, None]
    late = picked(marks.round, place) > 1
    again = (marks.round > 1) & drawn
    return Standing(
        round=picked(marks.round, place),
        level=picked(marks.level, place),
        ratio=picked(marks.ratio, place),
        likelihood=likelihood,
        weight=ones if finished.weight is None else finished.weight.astype(np.float32),
        counted=counted & (likelihood == 0),
        replaced=late & left_out & (first != np.arange(place.shape[1])),
        again=np.broadcast_to(np.any(again, axis=1, keepdims=True), place.shape).copy(),
        contexts=_contexts(marks, place),
    )


def _drawn_in(pool: Rollouts, places: range) -> Int[ndarray, "P M"]:
    """Those of some places of a pool in which a completion stands; -1 in the place of others."""
    drawn = np.any(np.asarray(pool.mask)[:, places.start : places.stop], axis=-1)
    return np.where(drawn, np.arange(places.start, places.stop), -1)


def _of_role(
    marks: _Marks, plan: algo.Plan, pool: Rollouts, place: Int[ndarray, "P M"]
) -> Rollouts:
    """The completions of a role, a group a prompt, and how they stand in it."""
    standing = _standing(marks, algo.Finished(place=place), plan, pool)
    nothing = np.zeros(place.shape, bool)
    standing = dataclasses.replace(standing, replaced=nothing, again=nothing)
    return grouped(dataclasses.replace(pool, standing=standing), place)


def _contexts(marks: _Marks, place: Int[ndarray, "P G"]) -> Contexts | None:
    """The contexts that completions of the groups were asked under; None if there are none."""
    asked, trained = picked(marks.asked, place), picked(marks.trained, place)
    if not asked.any():
        return None
    used = [sorted(set(row[row > 0].tolist())) for row in asked]
    texts = [[marks.contexts[p][c - 1] for c in numbers] for p, numbers in enumerate(used)]
    number = max(map(len, used))
    width = bucket(max(len(context) for group in texts for context in group))
    tokens = np.zeros((len(used), number, width), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for p, group in enumerate(texts):
        for c, context in enumerate(group):
            tokens[p, c, width - len(context) :] = context
            mask[p, c, width - len(context) :] = True
        for numbers in (asked[p], trained[p]):
            numbers[:] = [used[p].index(c) + 1 if c else 0 for c in numbers]
    return Contexts(tokens=tokens, mask=mask, asked=asked, trained=trained)


def picked(x: Shaped[AnyArray, "P N ..."], place: Int[ndarray, "P G"]) -> ndarray:
    """What stands at places of a pool; zeros where the place is -1."""
    values = np.asarray(x)
    taken = values[np.arange(len(place))[:, None], np.maximum(place, 0)]
    taken[place < 0] = 0
    return taken


def grouped(pool: Rollouts, place: Int[ndarray, "P G"]) -> Rollouts:
    """The completions of a pool in the groups that are trained."""
    return Rollouts(
        prompts=pool.prompts,
        tokens=picked(pool.tokens, place),
        mask=picked(pool.mask, place),
        behavior_logp=picked(pool.behavior_logp, place),
        finished=picked(pool.finished, place),
        injected=None if pool.injected is None else picked(pool.injected, place),
        standing=pool.standing,
    )


def _of_places(rollouts: Rollouts, places: int) -> Rollouts:
    """Whole groups in the first places of a pool."""
    missing = places - rollouts.mask.shape[1]
    if not missing:
        return rollouts
    more = lambda x: np.pad(np.asarray(x), [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    fields = ("tokens", "mask", "behavior_logp", "finished")
    return dataclasses.replace(rollouts, **{name: more(getattr(rollouts, name)) for name in fields})
