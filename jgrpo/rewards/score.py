"""Completions to numbers: builds the rewards of a run, and adds up what they say.

Letters: N completions, K rewards. Isolated rewards run in the worker pool, from the moment their
completions are there; the others run in this process at the end. The functions themselves stand in
`functions.py`, the work on completions in `scoring.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from jgrpo.config import RewardConfig, RewardFunctionConfig
from jgrpo.data.tasks import Task
from jgrpo.rewards.functions import REWARDS
from jgrpo.rewards.pool import Pool
from jgrpo.rewards.reward import Reward, built_in, imports, outside
from jgrpo.rewards.scoring import Columns, Failure, Scoring, Values
from jgrpo.types import Example, Message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What completions are worth.

    Attributes:
      names: the rewards.
      columns: value of each reward; nan where it gave none.
      total: weighted sum over the rewards that gave a value; 0 if none did.
      valid: False where no reward gave a value, or a reward failed whose `on_failure` leaves the
        completion, or its group, out of training, and at places without a completion.
      asked: False at the places of groups that no completion stands in.
      failed: for each isolated reward, which of the completions it scored it failed on.
      failures: the calls that failed.
      calls: calls of isolated rewards.
      calls_per_s: calls that the workers would answer in a second if they never waited; 0 if there
        were no calls.
    """

    names: tuple[str, ...]
    columns: Float32[np.ndarray, "N K"]
    total: Float32[np.ndarray, " N"]
    valid: Bool[np.ndarray, " N"]
    asked: Bool[np.ndarray, " N"]
    failed: Mapping[str, Bool[np.ndarray, " M"]]
    failures: tuple[Failure, ...]
    calls: int
    calls_per_s: float

    def taken(self, rows: Int[np.ndarray, " M"]) -> "Scores":
        """What is said of some completions, in their order; -1: of an empty place."""
        there, at = rows >= 0, np.maximum(rows, 0)
        return dataclasses.replace(
            self,
            columns=np.where(there[:, None], self.columns[at], np.float32(np.nan)),
            total=np.where(there, self.total[at], np.float32(0)),
            valid=there & self.valid[at],
            asked=there & self.asked[at],
        )

    def metrics(self) -> dict[str, float | int]:
        """How the isolated rewards fared."""
        counts = {name: int(failed.sum()) for name, failed in self.failed.items()}
        return {f"reward/{name}/failures": count for name, count in counts.items()} | {
            "reward/failures": sum(counts.values()),
            "reward/masked_fraction": 1.0 - float(self.valid[self.asked].mean())
            if self.asked.any()
            else 0.0,
            "reward/calls_per_s": self.calls_per_s,
        }


def build(
    specs: Sequence[RewardFunctionConfig], task: Task, cfg: RewardConfig
) -> tuple[Reward, ...]:
    """Makes the rewards of a run, and starts the worker processes if one of them is isolated.

    Args:
      specs: the rewards; if empty, those of the task.
      task: gives default rewards, and to `regex_format` its default pattern.
      cfg: number of workers and their limits.

    Raises:
      ValueError: naming the reward, for an unknown name or option, a function that cannot be
        imported, or a reward listed twice; if there is no reward at all.
      ImportError: naming the extra, if a reward needs a package that is not installed.
    """
    specs = specs or task.rewards
    if not specs:
        raise ValueError(
            f"reward.functions: task {task.name!r} has no rewards of its own; name one"
        )
    wanted = imports(specs)
    if not wanted:
        return tuple(built_in(spec, task, None) for spec in specs)
    pool = Pool(
        wanted,
        num_workers=cfg.workers,
        deadline_s=cfg.deadline_s,
        memory_mb=cfg.memory_mb,
    )
    try:
        described = pool.start()
        return tuple(
            built_in(spec, task, pool)
            if spec.name in REWARDS
            else outside(spec, described[spec.name], pool)
            for spec in specs
        )
    except BaseException:
        pool.close()
        raise


def close(rewards: Sequence[Reward]) -> None:
    """Ends the worker processes of the rewards."""
    for reward in rewards:
        if reward.pool is not None:
            reward.pool.close()


def reward_columns(examples: Sequence[Example], group_size: int) -> dict[str, list[Any]]:
    """Returns the columns of a rollout: every field of its examples, once per completion.

    The reference answer is always the column `answer`, the worked solution `solution`. A field
    that an example lacks is None.

    Args:
      examples: one per prompt.
      group_size: completions per prompt; those of a prompt stand together.
    """
    names = dict.fromkeys(name for example in examples for name in example.columns)
    rows = [
        {**dict.fromkeys(names), "solution": example.solution, **example.columns}
        | {"answer": example.answer}
        for example in examples
    ]
    return {
        name: [row[name] for row in rows for _ in range(group_size)]
        for name in dict.fromkeys((*names, "answer", "solution"))
    }


def begin(
    rewards: Sequence[Reward], examples: Sequence[Example], *, group_size: int, step: int = 0
) -> Scoring:
    """Begins to score the completions of some prompts; they are added as they come.

    Args:
      rewards: as `build` makes them.
      examples: the prompts.
      group_size: places for completions of a prompt.
      step: number of the step.

    Raises:
      ValueError: naming the reward, if it needs a column that is not there.
    """
    return Scoring(
        rewards,
        prompts=[example.prompt for example in examples for _ in range(group_size)],
        columns=reward_columns(examples, group_size),
        group_size=group_size,
        step=step,
    )


def finish(scoring: Scoring) -> Scores:
    """Waits for the values of all completions that were added, and adds the values up.

    The result depends on the completions alone, not on the order in which they were added.

    Raises:
      ValueError: naming the reward, if one that runs in this process does not return one finite
        number or None per completion.
      RewardError: if the worker processes cannot go on.
    """
    values = scoring.values()
    return _sum(scoring.rewards, values, scoring.group_size)


def score(
    rewards: Sequence[Reward],
    *,
    prompts: Sequence[str | Sequence[Message]],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    columns: Columns,
    group_size: int = 1,
    step: int = 0,
) -> Scores:
    """Scores completions that are all there.

    Args:
      rewards: as `build` makes them.
      prompts: the prompt of each completion.
      completions: text of each completion. A reward gets that of a chat as a message.
      completion_ids: tokens of each completion, EOS included.
      columns: further arguments; `reward_columns` makes them.
      group_size: completions per prompt; those of a prompt stand together.
      step: number of the step.

    Raises:
      ValueError: naming the reward or column, as `begin` and `finish`, or for a column that does
        not have an entry for each completion.
    """
    if not len(prompts) == len(completions) == len(completion_ids):
        raise ValueError(
            f"prompts, completions and completion_ids must be equally many, got {len(prompts)}, "
            f"{len(completions)} and {len(completion_ids)}"
        )
    scoring = Scoring(rewards, prompts=prompts, columns=columns, group_size=group_size, step=step)
    for row, (text, ids) in enumerate(zip(completions, completion_ids, strict=True)):
        scoring.add(row, text, ids)
    return finish(scoring)


def _sum(rewards: Sequence[Reward], values: Values, group_size: int) -> Scores:
    columns = values.columns.copy()
    dropped = np.zeros(len(columns), bool)
    for index, reward in enumerate(rewards):
        if reward.name not in values.failed:
            continue
        failed = values.failed[reward.name]
        if reward.spec.on_failure == "value":
            columns[failed, index] = reward.spec.failure_value
        elif reward.spec.on_failure == "mask":
            dropped |= failed
        else:
            groups = failed.reshape(-1, group_size).any(axis=1)
            dropped |= np.repeat(groups, group_size)
    known = ~np.isnan(columns)
    weights = np.array([reward.spec.weight for reward in rewards], np.float32)
    return Scores(
        names=tuple(reward.name for reward in rewards),
        columns=columns,
        total=np.where(known, columns * weights, np.float32(0)).sum(axis=1, dtype=np.float32),
        valid=np.asarray(known.any(axis=1)) & ~dropped,
        asked=values.asked,
        failed={name: failed[values.asked] for name, failed in values.failed.items()},
        failures=values.failures,
        calls=values.calls,
        calls_per_s=values.calls_per_s,
    )
