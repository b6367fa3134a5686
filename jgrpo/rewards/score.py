"""Completions to numbers: calls each reward, checks what it returns, adds up.

Letters: N completions, K rewards. Isolated rewards go through the worker pool, one completion per
call; the others run in this process. The functions themselves stand in `functions.py`.
"""

import dataclasses
import importlib.util
import inspect
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pydantic
from jaxtyping import Bool, Float32

from jgrpo.config import RewardConfig, RewardFunctionConfig, Scalar
from jgrpo.config_schema import suggestion
from jgrpo.data.tasks import Task
from jgrpo.rewards.functions import REWARDS
from jgrpo.rewards.pool import Pool, resolve
from jgrpo.types import Example, Message

Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""Further arguments of reward functions: one entry per completion each."""

_LARGEST = float(np.finfo(np.float32).max)
_ARGUMENTS = ("prompts", "completions", "completion_ids")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """A reward that is ready to be called.

    Attributes:
      name: as in the config; names its metric.
      weight: factor in the sum.
      function: takes the arguments it needs by keyword.
      options: arguments from the config.
      needs: arguments without which it cannot be called.
      takes: arguments that it accepts; None: all there are.
      pool: the worker processes it runs in, or None for this process.
    """

    name: str
    weight: float
    function: Callable[..., Any]
    options: Mapping[str, Scalar]
    needs: frozenset[str]
    takes: frozenset[str] | None
    pool: Pool | None = None

    @property
    def isolated(self) -> bool:
        """Whether it runs in worker processes, where it can be killed."""
        return self.pool is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What completions are worth.

    Attributes:
      names: the rewards.
      columns: value of each reward; nan where it gave none.
      total: weighted sum over the rewards that gave a value; 0 if none did.
      valid: False where no reward gave a value.
      failures: completions of which a reward gave no value because it raised, died or was
        killed, by reward; rewards without failures are absent.
    """

    names: tuple[str, ...]
    columns: Float32[np.ndarray, "N K"]
    total: Float32[np.ndarray, " N"]
    valid: Bool[np.ndarray, " N"]
    failures: Mapping[str, int]


def build(
    specs: Sequence[RewardFunctionConfig], task: Task, cfg: RewardConfig
) -> tuple[Reward, ...]:
    """Makes the rewards of a run. Worker processes start when they are first needed.

    Args:
      specs: the rewards; if empty, those of the task.
      task: gives default rewards, and to `regex_format` its default pattern.
      cfg: deadline and number of workers of isolated rewards.

    Raises:
      ValueError: naming the reward, for an unknown name or option, a missing module, or a reward
        listed twice; if there is no reward at all.
      ImportError: naming the extra, if a reward needs a package that is not installed.
    """
    specs = specs or task.rewards
    if not specs:
        raise ValueError(
            f"reward.functions: task {task.name!r} has no rewards of its own; name one"
        )
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"reward.functions: {name!r} is listed twice")
    return tuple(
        _built_in(spec, task, cfg) if spec.name in REWARDS else _outside(spec) for spec in specs
    )


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


def score(
    rewards: Sequence[Reward],
    *,
    prompts: Sequence[str | Sequence[Message]],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    columns: Columns,
) -> Scores:
    """Scores completions with every reward.

    Args:
      rewards: as `build` makes them.
      prompts: the prompt of each completion.
      completions: text of each completion. A reward gets that of a chat as a message.
      completion_ids: tokens of each completion, EOS included.
      columns: further arguments; `reward_columns` makes them.

    Raises:
      ValueError: naming the reward, if it needs a column that is not there, or does not return
        one finite number or None per completion.
    """
    arguments: dict[str, Sequence[Any]] = {
        **columns,
        "prompts": list(prompts),
        "completions": [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ],
        "completion_ids": list(completion_ids),
    }
    for name, values in arguments.items():
        if len(values) != len(completions):
            message = f"must have an entry for each of {len(completions)} completions"
            raise ValueError(f"column {name!r} {message}, got {len(values)}")
    table = np.full((len(completions), len(rewards)), np.nan, np.float32)
    failures: dict[str, int] = {}
    for index, reward in enumerate(rewards):
        given = _select(reward, arguments)
        if reward.pool is None:
            values = reward.function(**given, **reward.options)
            table[:, index] = _checked(reward.name, values, len(completions))
        else:
            table[:, index], failed = _isolated(reward, reward.pool, given, len(completions))
            failures |= {reward.name: failed} if failed else {}
    known = ~np.isnan(table)
    weights = np.array([reward.weight for reward in rewards], np.float32)
    return Scores(
        names=tuple(reward.name for reward in rewards),
        columns=table,
        total=np.where(known, table * weights, np.float32(0)).sum(axis=1, dtype=np.float32),
        valid=np.asarray(known.any(axis=1)),
        failures=failures,
    )


def _built_in(spec: RewardFunctionConfig, task: Task, cfg: RewardConfig) -> Reward:
    entry = REWARDS[spec.name]
    if entry.package and importlib.util.find_spec(entry.package) is None:
        raise ImportError(
            f"reward {spec.name!r} needs {entry.package}: pip install 'jgrpo[{entry.extra}]'"
        )
    parameters = inspect.signature(entry.function).parameters.values()
    # The columns of a built-in reward have no default and its options have one, so that a field of
    # the data never sets an option by having its name.
    needs = frozenset(item.name for item in parameters if item.default is item.empty)
    options = dict(spec.options)
    if spec.name == "regex_format" and "pattern" not in options:
        if task.format_pattern is None:
            raise ValueError(
                f"reward 'regex_format': task {task.name!r} has no form; set 'pattern'"
            )
        options["pattern"] = task.format_pattern
    _known_options(spec.name, options, [item.name for item in parameters if item.name not in needs])
    _check_options(spec.name, entry.function, options)
    pool = None
    if entry.isolated:
        pool = Pool(
            [_path(entry.function)],
            num_workers=cfg.workers,
            deadline_s=cfg.deadline_s,
            imports=entry.package,
        )
    return Reward(
        name=spec.name,
        weight=spec.weight,
        function=entry.function,
        options=options,
        needs=needs,
        takes=needs,
        pool=pool,
    )


def _outside(spec: RewardFunctionConfig) -> Reward:
    if ":" not in spec.name:
        raise ValueError(
            f"reward.functions: must be one of {', '.join(REWARDS)} or package.module:function, "
            f"got {spec.name!r}{suggestion(spec.name, REWARDS)}"
        )
    function = resolve(spec.name)
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    required = {p.name for p in parameters if p.name in named and p.default is p.empty}
    if not takes_all:
        allowed = [name for name in named if name not in _ARGUMENTS]
        _known_options(spec.name, spec.options, allowed)
    return Reward(
        name=spec.name,
        weight=spec.weight,
        function=function,
        options=dict(spec.options),
        needs=frozenset(required - set(spec.options)),
        takes=None if takes_all else frozenset(named),
    )


def _known_options(name: str, options: Mapping[str, Scalar], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            listed = f"known: {', '.join(known)}" if known else "it has none"
            raise ValueError(
                f"reward {name!r}: unknown option {option!r}{suggestion(option, known)} ({listed})"
            )


def _check_options(name: str, function: Callable[..., Any], options: Mapping[str, Scalar]) -> None:
    hints = typing.get_type_hints(function, include_extras=True)
    for option, value in options.items():
        try:
            pydantic.TypeAdapter(hints[option]).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ValueError(f"reward {name!r}: {option}: {problem}, got {value!r}") from error
    if "pattern" in options:
        try:
            re.compile(str(options["pattern"]))
        except re.error as error:
            message = f"{error}, got {options['pattern']!r}"
            raise ValueError(
                f"reward {name!r}: pattern: no regular expression: {message}"
            ) from error


def _path(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _select(reward: Reward, arguments: Columns) -> dict[str, Sequence[Any]]:
    missing = reward.needs - set(arguments)
    if missing:
        raise ValueError(
            f"reward {reward.name!r} needs {', '.join(sorted(missing))}, which is neither a field "
            f"of the data nor an option (there are: {', '.join(sorted(arguments))})"
        )
    return {
        name: values
        for name, values in arguments.items()
        if (reward.takes is None or name in reward.takes) and name not in reward.options
    }


def _isolated(reward: Reward, pool: Pool, given: Columns, count: int) -> tuple[list[float], int]:
    items = [
        {name: [values[row]] for name, values in given.items()} | dict(reward.options)
        for row in range(count)
    ]
    outcomes = pool.map(_path(reward.function), items)
    values = [
        math.nan if outcome.failure else _checked(reward.name, outcome.value, 1)[0]
        for outcome in outcomes
    ]
    return values, sum(outcome.failure != "" for outcome in outcomes)


def _checked(name: str, values: Any, count: int) -> list[float]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"reward {name!r} must return a list, got {type(values).__name__}")
    if len(values) != count:
        raise ValueError(f"reward {name!r} must return {count} values, got {len(values)}")
    return [math.nan if value is None else _finite(name, value) for value in values]


def _finite(name: str, value: Any) -> float:
    number = value.item() if isinstance(value, np.integer | np.floating) else value
    if not isinstance(number, int | float) or not abs(number) <= _LARGEST:
        raise ValueError(
            f"reward {name!r} must return finite numbers or None, got {value!r:.80}; "
            "None stands for no reward"
        )
    return float(number)
