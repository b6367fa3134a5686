"""One step's completions: prompts taken, completions sampled or read, and scored.

A method whose sampler is `dynamic` (DAPO) asks further prompts until enough groups have rewards
that differ; after its last round it fills up with what it has, so a step always ends.

Letters: P prompts, G completions per prompt, N = P*G rows, prompt by prompt.
"""

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from numpy import ndarray

from jgrpo import algo
from jgrpo.buckets import bucket
from jgrpo.config import Config
from jgrpo.data.chat import prompt_batch
from jgrpo.data.order import prompt_ids
from jgrpo.data.tasks import Task
from jgrpo.keys import named_key
from jgrpo.models.load import LoadedModel
from jgrpo.rewards.reward import Reward
from jgrpo.rewards.score import Scores, begin, finish
from jgrpo.rewards.scoring import Scoring
from jgrpo.rollout.engine import Engine
from jgrpo.rollout.sample import Sampling
from jgrpo.types import Example, Prompts, Rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """What a step trains on, before any advantage.

    Attributes:
      examples: the prompts as text.
      prompt_ids: their numbers in the task's training data.
      rollouts: their completions.
      completions: the completions as text, N of them.
      scores: rewards of the N completions.
      reference: True for completions that are worked solutions; None if none is.
      kept: False for groups that only fill the batch up.
      rounds: sampling rounds it took.
      cursor: prompts taken from the run's order, these included.
      rollout_s: seconds spent sampling.
      reward_s: seconds spent scoring after the sampling, which much of it overlaps.
    """

    examples: Sequence[Example]
    prompt_ids: Int[ndarray, " P"]
    rollouts: Rollouts
    completions: Sequence[str]
    scores: Scores
    reference: Bool[ndarray, "P G"] | None
    kept: Bool[ndarray, " P"]
    rounds: int
    cursor: int
    rollout_s: float
    reward_s: float

    @property
    def rewards(self) -> Float[ndarray, "P G"]:
        """Total rewards by group."""
        return self.scores.total.reshape(self.rollouts.mask.shape[:2])

    @property
    def texts(self) -> list[list[str]]:
        """The completions as text, by group."""
        size = self.rollouts.mask.shape[1]
        return [list(self.completions[i : i + size]) for i in range(0, len(self.completions), size)]

    @property
    def valid(self) -> Bool[ndarray, "P G"]:
        """False where no reward function gave a number."""
        return self.scores.valid.reshape(self.rollouts.mask.shape[:2])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collector:
    """What collecting needs besides weights, cursor and step.

    Attributes:
      cfg: the run's config.
      task: where prompts come from.
      model: for its tokenizer and token ids.
      engine: the sampler.
      rewards: the reward functions.
      root: the run's root key.
    """

    cfg: Config
    task: Task
    model: LoadedModel
    engine: Engine
    rewards: Sequence[Reward]
    root: Key[Array, ""]

    def collect(self, params: PyTree, step: int, cursor: int) -> Collected:
        """Takes prompts from `cursor` on and returns a full step of scored completions.

        Args:
          params: weights to sample with.
          step: number of the step, which names its noise.
          cursor: prompts taken so far.
        """
        method, wanted = self.cfg.method, self.cfg.data.num_prompts_per_step
        rounds = [self._round(params, step, cursor)]
        if method.sampler != "uniform":
            while sum(r.kept.sum() for r in rounds) < wanted:
                if len(rounds) == method.dynamic_max_rounds:
                    break
                rounds.append(self._round(params, step, rounds[-1].cursor))
        if len(rounds) == 1 and rounds[0].kept.all():
            return rounds[0]
        return _select(_join(rounds), wanted)

    def _round(self, params: PyTree, step: int, cursor: int) -> Collected:
        """Samples and scores one batch of prompts."""
        ids, examples, prompts = self.prompts(cursor)
        started = time.perf_counter()
        size, source = self.cfg.group_rows, self.cfg.method.source
        scoring = begin(self.rewards, examples, group_size=size, step=step)
        parts = []
        if source != "reference":
            key = named_key(self.root, step, "rollout")
            parts.append(self._sample(params, prompts, key, scoring))
        if source != "policy":
            parts.append(self._references(examples, prompts))
        rollouts = parts[0] if len(parts) == 1 else _beside(*parts)
        sampled = time.perf_counter()
        completions = texts(self.model, rollouts)
        for row, tokens in enumerate(completion_ids(rollouts)):
            scoring.add(row, completions[row], tokens)
        scores = finish(scoring)
        scored = time.perf_counter()
        shape = rollouts.mask.shape[:2]
        kept = np.ones(len(examples), bool)
        if self.cfg.method.sampler != "uniform":
            side = algo.Side(valid=scores.valid.reshape(shape))
            rewards = scores.total.reshape(shape)
            kept = np.asarray(algo.dynamic_keep(self.cfg.method, rewards, side))
        reference = np.broadcast_to(np.arange(size) >= size - (source != "policy"), shape)
        return Collected(
            examples=examples,
            prompt_ids=ids,
            rollouts=rollouts,
            completions=completions,
            scores=scores,
            reference=None if source == "policy" else reference,
            kept=kept,
            rounds=1,
            cursor=cursor + len(examples),
            rollout_s=sampled - started,
            reward_s=scored - sampled,
        )

    def prompts(self, cursor: int) -> tuple[Int[ndarray, " P"], list[Example], Prompts]:
        """The prompts of one round, those at `cursor` in the run's order: ids, texts, tokens."""
        data = self.cfg.data
        ids = prompt_ids(
            len(self.task.train),
            self.cfg.run.seed,
            cursor,
            data.num_prompts_per_step,
            shuffle=data.shuffle,
        )
        examples = [self.task.train[int(i)] for i in ids]
        uids = np.arange(cursor, cursor + len(examples), dtype=np.int32)
        tokens = prompt_batch(
            self.model.tokenizer, examples, uids, cfg=data, pad_id=self.model.pad_id
        )
        return np.asarray(ids, np.int32), examples, tokens

    def _sample(
        self, params: PyTree, prompts: Prompts, key: Key[Array, ""], scoring: Scoring
    ) -> Rollouts:
        """Samples; what has ended is scored while the rest is sampled."""
        cfg = self.cfg.rollout
        isolated = any(reward.isolated for reward in self.rewards)

        def hand_over(row: int, tokens: list[int]) -> None:
            prompt, place = divmod(row, cfg.group_size)
            row = prompt * self.cfg.group_rows + place
            scoring.add(row, _text(self.model, tokens), tokens)

        return self.engine.generate(
            params,
            prompts,
            key,
            group_size=cfg.group_size,
            max_tokens=cfg.max_completion_tokens,
            sampling=Sampling(
                temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p, min_p=cfg.min_p
            ),
            stop=cfg.stop,
            on_finished=hand_over if isolated else None,
        )

    def _references(self, examples: Sequence[Example], prompts: Prompts) -> Rollouts:
        """The worked solutions of the prompts, each the one member of its group."""
        limit = self.cfg.rollout.max_completion_tokens
        rows = []
        for example in examples:
            if example.solution is None:
                raise ValueError(
                    f"method {self.cfg.method.name!r} trains on worked solutions, but task "
                    f"{self.task.name!r} has none for the prompt {str(example.prompt)[:80]!r}"
                )
            text = self.model.tokenizer(example.solution, add_special_tokens=False)["input_ids"]
            row = [*text, self.model.eos_ids[0]]
            if len(row) > limit:
                raise ValueError(
                    f"a worked solution has {len(row)} tokens, more than "
                    f"rollout.max_completion_tokens = {limit}: {example.solution[:80]!r}"
                )
            rows.append(row)
        width = min(bucket(max(map(len, rows))), bucket(limit))
        tokens = np.full((len(rows), 1, width), self.model.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for tokens_T, mask_T, row in zip(tokens[:, 0], mask[:, 0], rows, strict=True):
            tokens_T[: len(row)] = row
            mask_T[: len(row)] = True
        return Rollouts(
            prompts=prompts,
            tokens=tokens,
            mask=mask,
            behavior_logp=np.zeros(tokens.shape, np.float32),
            finished=np.ones(tokens.shape[:2], bool),
        )


def completion_ids(rollouts: Rollouts) -> list[list[int]]:
    """The token ids of each completion without padding, prompt by prompt."""
    width = rollouts.tokens.shape[-1]
    tokens, mask = (np.asarray(x).reshape(-1, width) for x in (rollouts.tokens, rollouts.mask))
    return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]


def texts(model: LoadedModel, rollouts: Rollouts) -> list[str]:
    """The completions as text, without special tokens, prompt by prompt."""
    return [_text(model, ids) for ids in completion_ids(rollouts)]


def _text(model: LoadedModel, ids: list[int]) -> str:
    return model.tokenizer.batch_decode([ids], skip_special_tokens=True)[0]


def score_rollouts(
    rewards: Sequence[Reward],
    examples: Sequence[Example],
    rollouts: Rollouts,
    completions: Sequence[str],
    step: int = 0,
) -> Scores:
    """Calls the reward functions on every completion of every prompt."""
    scoring = begin(rewards, examples, group_size=rollouts.mask.shape[1], step=step)
    for row, ids in enumerate(completion_ids(rollouts)):
        scoring.add(row, completions[row], ids)
    return finish(scoring)


def _join(rounds: Sequence[Collected]) -> Collected:
    """Puts the groups of several rounds behind each other."""
    return Collected(
        examples=[example for r in rounds for example in r.examples],
        prompt_ids=np.concatenate([r.prompt_ids for r in rounds]),
        rollouts=_join_rollouts([r.rollouts for r in rounds]),
        completions=[text for r in rounds for text in r.completions],
        scores=_join_scores([r.scores for r in rounds]),
        reference=_join_references([r.reference for r in rounds]),
        kept=np.concatenate([r.kept for r in rounds]),
        rounds=len(rounds),
        cursor=rounds[-1].cursor,
        rollout_s=sum(r.rollout_s for r in rounds),
        reward_s=sum(r.reward_s for r in rounds),
    )


def _select(collected: Collected, wanted: int) -> Collected:
    """Takes the kept groups in their order, then others, up to the number wanted."""
    chosen = np.argsort(~collected.kept, kind="stable")[:wanted]
    group_size = collected.rollouts.mask.shape[1]
    rows = (chosen[:, None] * group_size + np.arange(group_size)).reshape(-1)
    scores = collected.scores
    return dataclasses.replace(
        collected,
        examples=[collected.examples[i] for i in chosen.tolist()],
        prompt_ids=collected.prompt_ids[chosen],
        rollouts=jax.tree.map(lambda x: np.asarray(x)[chosen], collected.rollouts),
        completions=[collected.completions[i] for i in rows.tolist()],
        scores=dataclasses.replace(
            scores,
            columns=scores.columns[rows],
            total=scores.total[rows],
            valid=scores.valid[rows],
        ),
        reference=None if collected.reference is None else collected.reference[chosen],
        kept=collected.kept[chosen],
    )


def _join_references(
    parts: Sequence[Bool[ndarray, "P G"] | None],
) -> Bool[ndarray, "Q G"] | None:
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


def _beside(sampled: Rollouts, solutions: Rollouts) -> Rollouts:
    """Puts the solution of each prompt behind its samples, as a further row of the group."""
    wide = _of_one_width([sampled, solutions])
    rows = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *(_rows(part) for part in wide))
    return Rollouts(prompts=sampled.prompts, **rows)


def _join_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    prompt_width = max(part.prompts.tokens.shape[-1] for part in parts)
    left = lambda x: np.pad(x, [(0, 0), (prompt_width - x.shape[-1], 0)])  # noqa: E731
    wide = [
        dataclasses.replace(
            part,
            prompts=dataclasses.replace(
                part.prompts, tokens=left(part.prompts.tokens), mask=left(part.prompts.mask)
            ),
        )
        for part in _of_one_width(parts)
    ]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *wide)


def _of_one_width(parts: Sequence[Rollouts]) -> list[Rollouts]:
    width = max(part.tokens.shape[-1] for part in parts)
    right = lambda x: np.pad(x, [(0, 0), (0, 0), (0, width - x.shape[-1])])  # noqa: E731
    return [
        dataclasses.replace(
            part,
            tokens=right(part.tokens),
            mask=right(part.mask),
            behavior_logp=right(part.behavior_logp),
        )
        for part in parts
    ]


def _rows(rollouts: Rollouts) -> dict[str, ndarray]:
    """What a record holds of completions, without their prompts."""
    names = ("tokens", "mask", "behavior_logp", "finished")
    return {name: np.asarray(getattr(rollouts, name)) for name in names}


def _join_scores(parts: Sequence[Scores]) -> Scores:
    return Scores(
        names=parts[0].names,
        columns=np.concatenate([part.columns for part in parts]),
        total=np.concatenate([part.total for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
        failed={
            name: np.concatenate([part.failed[name] for part in parts]) for name in parts[0].failed
        },
        failures=tuple(failure for part in parts for failure in part.failures),
        calls=sum(part.calls for part in parts),
        calls_per_s=sum(part.calls_per_s for part in parts) / len(parts),
    )
