"""The completions of a step on their way through the reward functions.

A completion goes to the workers as soon as it is added, while others are still being sampled; a
function that compares completions is called when the last of them is there. Where a call ended up
in the table depends on its completions alone, so the order of events changes nothing. A place of a
group that stays empty is never shown to a function.

Of several processes each scores some of the groups, in turn, and tells the others what it found:
not by the devices, for which another thread may be learning meanwhile (`rollout.lag`).

Letters: N completions, K rewards.
"""

import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32

from jgrpo.parallel import hosts, service
from jgrpo.rewards.calls import TRL_ARGUMENTS, Call, Kind, Outcome, RewardError, checked
from jgrpo.rewards.reward import Reward
from jgrpo.rewards.template import START_DEADLINE_S
from jgrpo.types import Message

Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""Further arguments of reward functions: one entry per completion each."""

_Answer: TypeAlias = tuple[int, tuple[int, ...], Outcome]
"""Number of a reward, the completions of a call, and what became of it."""

_SCORES = service.Channel("scores")
_LOG = logging.getLogger(__name__)
_LOG_EVERY_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A call that gave no values.

    Attributes:
      function: the reward's name.
      kind: what happened; see `Outcome`.
      detail: the same in words.
      completions: how many completions were in the call. What follows is of the first.
      prompt: the prompt.
      completion: the completion.
      columns: the further arguments, options left out.
    """

    function: str
    kind: Kind
    detail: str
    completions: int
    prompt: str | Sequence[Message]
    completion: str
    columns: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    """What the functions said.

    Attributes:
      columns: value of each reward; nan where it gave none or failed.
      asked: False at the places of groups that no completion stands in.
      failed: for each isolated reward, the completions that it failed on.
      failures: the calls that failed, by reward, then by completion.
      calls: calls of isolated rewards.
      calls_per_s: calls that the workers would answer in a second if they never waited.
    """

    columns: Float32[np.ndarray, "N K"]
    asked: Bool[np.ndarray, " N"]
    failed: Mapping[str, Bool[np.ndarray, " N"]]
    failures: tuple[Failure, ...]
    calls: int
    calls_per_s: float


class Scoring:
    """Takes completions one by one and has them scored.

    Attributes:
      rewards: the rewards.
      group_size: places of a group.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        *,
        prompts: Sequence[str | Sequence[Message]],
        columns: Columns,
        group_size: int,
        step: int,
    ) -> None:
        """Prepares for at most one completion of each prompt.

        Args:
          rewards: the rewards.
          prompts: the prompt of each place, group by group.
          columns: further arguments of the functions, one entry per place.
          group_size: places of a group.
          step: number of the step.

        Raises:
          ValueError: for a column of the wrong length, or one that a reward needs and lacks.
        """
        self.rewards = rewards
        self.group_size = group_size
        self._step = step
        self._processes, self._process = hosts.count(), hosts.index()
        count = len(prompts)
        if count % group_size:
            raise ValueError(f"{count} completions are no whole groups of {group_size}")
        self._arguments: dict[str, list[Any]] = {
            **{name: list(values) for name, values in columns.items() if name not in TRL_ARGUMENTS},
            "prompts": list(prompts),
            "completions": [None] * count,
            "completion_ids": [None] * count,
        }
        for name, values in self._arguments.items():
            if len(values) != count:
                message = f"must have an entry for each of {count} completions"
                raise ValueError(f"column {name!r} {message}, got {len(values)}")
        self._texts: list[str | None] = [None] * count
        self._pending: dict[tuple[int, tuple[int, ...]], Future[Outcome]] = {}
        for reward in rewards:
            reward.select(self._arguments)

    def add(self, row: int, text: str, ids: Sequence[int]) -> None:
        """Adds a completion, and makes the calls that it completes.

        Adding a completion again changes nothing; another in its place takes its place.

        Args:
          row: its place, from 0, group by group.
          text: the completion as text.
          ids: its tokens, EOS included.
        """
        prompt, ids = self._arguments["prompts"][row], list(ids)
        if self._texts[row] == text and self._arguments["completion_ids"][row] == ids:
            return
        self._texts[row] = text
        self._arguments["completion_ids"][row] = ids
        self._arguments["completions"][row] = (
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        )
        for index, reward in enumerate(self.rewards):
            rows = self._rows_with(reward, row)
            if reward.pool is not None and all(self._texts[r] is not None for r in rows):
                self._submit(index, tuple(rows))

    def values(self) -> Values:
        """Calls what runs in this process and waits for the rest.

        Raises:
          ValueError: as `finish`.
          RewardError: if the worker processes cannot go on.
        """
        count = len(self._texts)
        there = [row for row, text in enumerate(self._texts) if text is not None]
        table = np.full((count, len(self.rewards)), np.nan, np.float32)
        answers = _everyones(lambda: self._answers(there))
        failed = {r.name: np.zeros(count, bool) for r in self.rewards if r.pool is not None}
        failures = []
        busy_s = 0.0
        for index, rows, outcome in answers:
            reward = self.rewards[index]
            busy_s += outcome.seconds
            if outcome.kind:
                failed[reward.name][list(rows)] = True
                failures.append(self._failure(reward, rows, outcome))
            else:
                table[list(rows), index] = _numbers(outcome.values)
        pools = [reward.pool for reward in self.rewards if reward.pool is not None]
        workers = pools[0].num_workers * self._processes if pools else 0
        calls = sum(self.rewards[index].pool is not None for index, _, _ in answers)
        asked = np.zeros(count, bool)
        asked[there] = True
        return Values(
            columns=table,
            asked=asked,
            failed=failed,
            failures=tuple(failures),
            calls=calls,
            calls_per_s=calls * workers / max(busy_s, 1e-9),
        )

    def _answers(self, there: Sequence[int]) -> list[_Answer]:
        """What the functions say of the groups of this process, by reward, then by completion."""
        found = list[_Answer]()
        ours = tuple(row for row in there if self._is_ours(row))
        for index, reward in enumerate(self.rewards):
            if reward.function is not None and ours:
                found.append((index, ours, Outcome(values=self._here(reward, ours))))
            elif reward.pool is not None:
                self._submit_what_has_gaps(index, there)
        self._wait()
        for index, rows in sorted(self._pending):
            found.append((index, rows, self._pending[index, rows].result()))
        return found

    def _is_ours(self, row: int) -> bool:
        return row // self.group_size % self._processes == self._process

    def _submit(self, index: int, rows: tuple[int, ...]) -> None:
        reward = self.rewards[index]
        assert reward.pool is not None
        if not self._is_ours(rows[0]):
            return
        if previous := self._pending.get((index, rows)):
            previous.cancel()
        self._pending[index, rows] = reward.pool.submit(self._call(reward, rows))

    def _submit_what_has_gaps(self, index: int, there: Sequence[int]) -> None:
        """The calls that were waiting for completions which will not come."""
        for wanted in dict.fromkeys(self._rows_with(self.rewards[index], row) for row in there):
            rows = tuple(row for row in wanted if self._texts[row] is not None)
            if (index, rows) not in self._pending:
                self._submit(index, rows)

    def _here(self, reward: Reward, rows: Sequence[int]) -> list[float | None]:
        assert reward.function is not None
        returned = reward.function(**self._columns(reward, rows), **reward.options)
        try:
            return checked(returned, len(rows))
        except ValueError as error:
            raise ValueError(f"reward {reward.name!r} {error}") from error

    def _wait(self) -> None:
        """Waits for every call; the pool kills what takes too long, and so they all come."""
        pending = set(self._pending.values())
        limit_s = START_DEADLINE_S + sum(
            2.0 * len(rows) * pool.deadline_s
            for index, rows in self._pending
            if (pool := self.rewards[index].pool) is not None
        )
        give_up = time.monotonic() + limit_s
        while pending:
            _, pending = concurrent.futures.wait(pending, timeout=_LOG_EVERY_S)
            if pending and time.monotonic() > give_up:
                raise RewardError(f"{len(pending)} reward calls did not end in {limit_s:g} s")
            if pending:
                names = {self.rewards[i].name for i, _ in self._pending}
                _LOG.warning("waiting for %d calls of %s", len(pending), ", ".join(sorted(names)))

    def _rows_with(self, reward: Reward, row: int) -> range:
        """The places whose completions are scored in one call with this one."""
        if reward.spec.per == "completion":
            return range(row, row + 1)
        if reward.spec.per == "step":
            return range(len(self._texts))
        begin = row - row % self.group_size
        return range(begin, begin + self.group_size)

    def _columns(self, reward: Reward, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The arguments of a function for some completions."""
        selected = reward.select(self._arguments)
        return {name: [values[row] for row in rows] for name, values in selected.items()}

    def _call(self, reward: Reward, rows: tuple[int, ...]) -> Call:
        return Call(
            function=reward.path,
            arguments={**self._columns(reward, rows), **reward.options},
            count=len(rows),
            step=self._step,
            seed=f"{self._step}/{rows[0]}",
        )

    def _failure(self, reward: Reward, rows: tuple[int, ...], outcome: Outcome) -> Failure:
        own = ("prompts", "completions", "completion_ids")
        columns = {name: values[0] for name, values in self._columns(reward, rows[:1]).items()}
        return Failure(
            function=reward.name,
            kind=outcome.kind,
            detail=outcome.detail,
            completions=len(rows),
            prompt=self._arguments["prompts"][rows[0]],
            completion=self._texts[rows[0]] or "",
            columns={name: value for name, value in columns.items() if name not in own},
        )


def _everyones(answers: Callable[[], list[_Answer]]) -> list[_Answer]:
    """What all processes say, in the order in which one alone would.

    Raises:
      ValueError, RewardError: what is raised in this process, or in another one, named.
    """
    if hosts.count() == 1:
        return answers()
    said: dict[str, Any] = {}
    problem = None
    try:
        said["answers"] = [(i, rows, dataclasses.asdict(o)) for i, rows, o in answers()]
    except (ValueError, RewardError) as error:
        problem, said["problem"] = error, str(error)
    everyones = _SCORES.exchange(said)
    if problem is not None:
        raise problem
    for process, others in enumerate(everyones):
        if "problem" in others:
            raise RewardError(f"process {process}: {others['problem']}")
    return sorted(
        (
            (index, tuple(rows), Outcome(**outcome))
            for others in everyones
            for index, rows, outcome in others["answers"]
        ),
        key=lambda answer: answer[:2],
    )


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]
