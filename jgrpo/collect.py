"""One step's completions: prompts taken, completions sampled or read, and scored.

A method whose sampler is `dynamic` (DAPO) asks further prompts until enough groups have rewards
that differ; after its last round it fills up with what it has, so a step always ends.

Letters: P prompts, G places of a group, N = P*G rows, prompt by prompt. Groups are full, unless
the plan gives each prompt a number of completions of its own (`algo/plans.py`).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from numpy import ndarray

from jgrpo import algo
from jgrpo.asking import Asked, Asking
from jgrpo.collected import Collected, chosen, joined, numbers, selected
from jgrpo.config import Config
from jgrpo.contexts import Words
from jgrpo.data.tasks import Task
from jgrpo.distilling import Distilling
from jgrpo.drawing import Drawing, Drawn, grouped
from jgrpo.joining import beside
from jgrpo.keys import named_key
from jgrpo.models.load import LoadedModel
from jgrpo.recalling import Recalled
from jgrpo.rewards.experts import expert_scores
from jgrpo.rewards.reward import Reward
from jgrpo.rewards.rubrics import unmet
from jgrpo.rewards.score import Scores, begin, finish
from jgrpo.rewards.scoring import Scoring
from jgrpo.roles import JUDGE, Written, written
from jgrpo.rollout.engine import Engine
from jgrpo.rollout.meter import Meter
from jgrpo.rollout.sample import drawing_limits
from jgrpo.solutions import whole_solutions
from jgrpo.strategy.asks import Asks
from jgrpo.strategy.control import of_step
from jgrpo.strategy.replay import Store
from jgrpo.strategy.skills import Chosen, Shelf
from jgrpo.types import Contexts, Prompts, Rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collector:
    """What collecting needs besides weights, cursor and step.

    Attributes:
      cfg: the run's config.
      task: for its name, where it lacks a solution.
      asking: gives the prompts.
      model: for its tokenizer and token ids.
      engine: the sampler.
      rewards: the reward functions.
      root: the run's root key.
      experts: the reward functions that judge what a role answers.
      rely: says how much completions rely on their contexts (`relying.reliance`).
      stop: says where a preference model would end them (`preferring.stops_of`).
      recall: gives a completion of an earlier step for some prompts; None: none comes back.
      choose: chooses the skills that prompts are asked under; None: there are none.
      distil: makes a skill of a step; None: nobody asks.
      regroup: makes further groups of the parts of a step's; None: there is nothing to make.
      check: called again and again while sampling; may raise to give up.
      on_drawn: called whenever a round has been sampled, before it is scored.
    """

    cfg: Config
    task: Task
    asking: Asking
    model: LoadedModel
    engine: Engine
    rewards: Sequence[Reward]
    experts: Sequence[Reward]
    root: Key[Array, ""]
    rely: Callable[[PyTree, Rollouts, Contexts, Bool[ndarray, "P N"]], Float[ndarray, "P N"]]
    stop: Callable[[PyTree, Rollouts], Int[ndarray, "P N"]]
    recall: Callable[[PyTree, Prompts, Int[ndarray, " R"], Store], list[Recalled]] | None = None
    choose: Callable[[PyTree, Prompts, Shelf, int, Key[Array, ""]], list[Chosen]] | None = None
    distil: Distilling | None = None
    regroup: Callable[[Collected], Collected] | None = None
    check: Callable[[], None] | None = None
    on_drawn: Callable[[], None] = lambda: None

    def collect(
        self,
        params: PyTree,
        step: int,
        cursor: int,
        strategy: Mapping[str, PyTree],
        roles: Mapping[str, PyTree] = MappingProxyType({}),
    ) -> Collected:
        """Takes prompts from `cursor` on and returns a full step of scored completions.

        Args:
          params: weights to sample with.
          step: number of the step, which names its noise.
          cursor: prompts taken so far.
          strategy: the states of the method's slots.
          roles: weights of the roles of the plan, and of the preference model (`role_params`).
        """
        method, wanted = self.cfg.method, self.cfg.data.num_prompts_per_step
        ours = dataclasses.replace(self, cfg=of_step(self.cfg, strategy))
        round_of = partial(ours._round, params, step, strategy=strategy, roles=roles)
        rounds = [round_of(cursor)]
        if method.sampler != "uniform":
            while sum(r.kept.sum() for r in rounds) < wanted:
                if len(rounds) == method.dynamic_max_rounds:
                    break
                rounds.append(round_of(rounds[-1].cursor))
        is_whole = len(rounds) == 1 and rounds[0].kept.all()
        found = rounds[0] if is_whole else selected(joined(rounds), wanted)
        if self.distil is not None:
            distil = dataclasses.replace(self.distil, cfg=ours.cfg)
            found = distil.distilled(params, step, named_key(self.root, step, "skill"), found)
        return found if self.regroup is None else self.regroup(found)

    def _round(
        self,
        params: PyTree,
        step: int,
        cursor: int,
        *,
        strategy: Mapping[str, PyTree],
        roles: Mapping[str, PyTree],
    ) -> Collected:
        """Samples and scores one batch of prompts."""
        ids, examples, prompts, after, _ = asked = self.asking.take(cursor, strategy)
        started = time.perf_counter()
        size, source = self.cfg.group_pool, self.cfg.method.source
        scoring = begin(self.rewards, examples, group_size=size, step=step)
        parts, meter, place, of_roles = [], Meter(), None, {}
        if source != "reference":
            whose = {"": params, **roles}
            drawn = self._drawing(whose, step, asked, scoring, meter, strategy).rounds()
            place = drawn.finished.place if self.cfg.plan.marks else None
            parts.append(drawn.pool)
            of_roles = self._of_roles(drawn)
        if source != "policy":
            limit = self.cfg.rollout.max_completion_tokens
            solutions = whole_solutions(self.model, examples, limit=limit, of=self._named)
            parts.append(Rollouts(prompts=prompts, **solutions))
        rollouts = parts[0] if len(parts) == 1 else beside(*parts)
        sampled = time.perf_counter()
        ids_N, completions, scores = self._score(scoring, rollouts)
        scored = time.perf_counter()
        if place is not None:
            rollouts, rows = grouped(rollouts, place), numbers(place, size)
            ids_N, completions = chosen(ids_N, rows, []), chosen(completions, rows, "")
            scores = scores.taken(rows)
        shape = rollouts.mask.shape[:2]
        reference = np.broadcast_to(np.arange(shape[1]) >= shape[1] - (source != "policy"), shape)
        return Collected(
            examples=examples,
            prompt_ids=ids,
            rollouts=rollouts,
            completion_ids=ids_N,
            completions=completions,
            scores=scores,
            reference=None if source == "policy" else reference,
            kept=self._kept(scores, shape),
            rounds=1,
            cursor=after,
            rollout_s=sampled - started,
            meter=meter,
            reward_s=scored - sampled,
            **of_roles,
        )

    def _drawing(
        self,
        params: Mapping[str, PyTree],
        step: int,
        asked: Asked,
        scoring: Scoring,
        meter: Meter,
        strategy: Mapping[str, PyTree],
    ) -> Drawing:
        """The rounds of a step, drawn with the weights of each role."""
        key = named_key(self.root, step, "rollout")
        sample = partial(self._sample, params, asked.tokens, scoring, meter, key)

        def draw(asks: Asks | None, role: str) -> Rollouts:
            drawn = sample(asks, role)
            self.on_drawn()
            return drawn

        return Drawing(
            cfg=self.cfg,
            prompts=asked.tokens,
            prompt_ids=asked.ids,
            words=self._words(params[""], step, asked, strategy),
            draw=draw,
            score=partial(self._score, scoring),
            rely=partial(self.rely, params[""]),
            judge=partial(expert_scores, self.experts),
            stop=partial(self.stop, params.get(JUDGE)),
            step=step,
            key=named_key(self.root, step, "plan"),
            strategy=strategy,
        )

    def _kept(self, scores: Scores, shape: tuple[int, ...]) -> Bool[ndarray, " P"]:
        """The groups that the sampler keeps."""
        if self.cfg.method.sampler == "uniform":
            return np.ones(shape[0], bool)
        side = algo.Side(valid=scores.valid.reshape(shape))
        return np.asarray(algo.dynamic_keep(self.cfg.method, scores.total.reshape(shape), side))

    def _of_roles(self, drawn: Drawn) -> dict[str, Any]:
        """What the roles have drawn, and what the plan says of the step; fields of `Collected`."""
        found, paid = dict[str, Written](), drawn.finished.rewards
        for name, rollouts in drawn.roles.items():
            completions = texts(self.model, completion_ids(rollouts))
            found[name] = written(self.cfg.method, rollouts, completions, paid[name])
        return {"roles": found, "told": drawn.finished.metrics}

    def _sample(
        self,
        params: Mapping[str, PyTree],
        prompts: Prompts,
        scoring: Scoring,
        meter: Meter,
        key: Key[Array, ""],
        asks: Asks | None,
        role: str,
    ) -> Rollouts:
        """Samples whole groups, or what is asked; scores what has ended while the rest goes on."""
        cfg, places = self.cfg, self.cfg.group_pool
        limit = cfg.rollout.max_completion_tokens
        shared: dict[str, Any] = {"meter": meter, "check": self.check}
        isolated = not role and any(reward.isolated for reward in self.rewards)

        def hand_over(prompt: int, place: int, tokens: list[int]) -> None:
            scoring.add(prompt * places + place, _text(self.model, tokens), tokens)

        size = cfg.group_drawn
        if asks is None or (size == places and asks.whole(len(prompts.uid), size)):
            whole = lambda row, tokens: hand_over(row // size, row % size, tokens)  # noqa: E731
            shared["on_finished"] = whole if isolated else None
            return self.engine.generate(
                params[role], prompts, key, group_size=size, **self._limits, **shared
            )
        most = cfg.rollout.slots or len(prompts.uid) * size  # no more memory than whole groups
        size, slots = asks.sizes(most)

        def behind_its_beginning(row: int, tokens: list[int]) -> None:
            ask, member = divmod(row, size)
            hand_over(*asks.place(ask, member), [*asks.beginnings[ask], *tokens])

        if not asks.to_draw.any():
            return asks.answered(asks.undrawn(prompts), prompts, places)
        drawn = dataclasses.replace(self.engine, slots=slots, few=True).generate(
            params[role],
            asks.prompts(prompts),
            key,
            group_size=size,
            **self._limits,
            **shared,
            counts=asks.to_draw,
            first=asks.first,
            limits=asks.limits(limit),
            on_finished=behind_its_beginning if isolated else None,
        )
        return asks.answered(drawn, prompts, places)

    def _words(
        self, params: PyTree, step: int, asked: Asked, strategy: Mapping[str, PyTree]
    ) -> Words:
        """Writes what is wanted of prompts; knows completions that come back, and skills."""
        examples, stored, skills = asked.examples, list[Recalled](), list[Chosen]()
        if asked.replayed and self.recall is not None:
            store = jax.device_get(strategy["replay"])
            stored = self.recall(params, asked.tokens, asked.ids[: asked.replayed], store)
        if self.choose is not None:
            shelf, key = jax.device_get(strategy["skills"]), named_key(self.root, step, "choose")
            skills = self.choose(params, asked.tokens, shelf, step, key)
        shared = {"cfg": self.cfg, "model": self.model, "unmet": partial(unmet, self.rewards)}
        return Words(examples=examples, of=self._named, stored=stored, skills=skills, **shared)

    @property
    def _named(self) -> str:
        """Method and task, for an error."""
        return f"method {self.cfg.method.name!r} on task {self.task.name!r}"

    @property
    def _limits(self) -> dict[str, Any]:
        """How tokens are drawn in training, and when a completion ends."""
        return drawing_limits(self.cfg.rollout)

    def compile_ahead(self, params: PyTree, prompts: Prompts) -> None:
        """Compiles what sampling for such prompts may run (groups of one size)."""
        size = self.cfg.group_drawn
        self.engine.compile_ahead(params, prompts, group_size=size, **self._limits)

    def _score(
        self, scoring: Scoring, rollouts: Rollouts
    ) -> tuple[list[list[int]], list[str], Scores]:
        """Token ids and text of the completions so far, and their rewards."""
        ids_N = completion_ids(rollouts)
        completions = texts(self.model, ids_N)
        unscored = {place for places in self.cfg.plan.roles.values() for place in places}
        size = rollouts.mask.shape[1]
        shown = [[] if i % size in unscored else ids for i, ids in enumerate(ids_N)]
        return ids_N, completions, score_rollouts(scoring, shown, completions)


def completion_ids(rollouts: Rollouts) -> list[list[int]]:
    """The token ids of each completion without padding, prompt by prompt."""
    width = rollouts.tokens.shape[-1]
    tokens, mask = (np.asarray(x).reshape(-1, width) for x in (rollouts.tokens, rollouts.mask))
    return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]


def texts(model: LoadedModel, completion_ids: Sequence[list[int]]) -> list[str]:
    """Completions as text, without special tokens."""
    return [_text(model, ids) for ids in completion_ids]


def _text(model: LoadedModel, ids: list[int]) -> str:
    return model.tokenizer.batch_decode([ids], skip_special_tokens=True)[0]


def score_rollouts(
    scoring: Scoring, completion_ids: Sequence[list[int]], completions: Sequence[str]
) -> Scores:
    """Hands over every completion that has not been, and waits for the rewards of all.

    A place without a token is empty: whatever was drawn has at least one.
    """
    for row, (ids, text) in enumerate(zip(completion_ids, completions, strict=True)):
        if ids:
            scoring.add(row, text, ids)
    return finish(scoring)
