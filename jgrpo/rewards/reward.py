"""From a reward's lines in the config to something that can be called; every mistake is named.

Which arguments a function takes follows from its signature: of a built-in reward it is read here,
of an outside function in the process that has imported it.
"""

import dataclasses
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic

from jgrpo.config import RewardFunctionConfig, Scalar
from jgrpo.config_schema import suggestion
from jgrpo.data.tasks import Task
from jgrpo.rewards.calls import TRL_ARGUMENTS, Description
from jgrpo.rewards.functions import REWARDS
from jgrpo.rewards.pool import Pool

_ARGUMENTS = ("prompts", "completions", "completion_ids", *TRL_ARGUMENTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """A reward that is ready to be called.

    Attributes:
      spec: its lines in the config.
      path: `package.module:function`.
      options: arguments from the config.
      needs: columns without which it cannot be called.
      takes: columns that it accepts; None: all there are.
      function: what computes it in this process; None if it is isolated.
      pool: the worker processes it runs in; None for this process.
    """

    spec: RewardFunctionConfig
    path: str
    options: Mapping[str, Scalar]
    needs: frozenset[str]
    takes: frozenset[str] | None
    function: Callable[..., Any] | None = None
    pool: Pool | None = None

    @property
    def name(self) -> str:
        """As in the config; names its metrics."""
        return self.spec.name

    @property
    def isolated(self) -> bool:
        """Whether it runs in worker processes, where it can be killed."""
        return self.pool is not None

    def select(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """The columns that the function gets.

        Raises:
          ValueError: naming the reward, if it needs a column that is not there.
        """
        missing = self.needs - set(columns)
        if missing:
            raise ValueError(
                f"reward {self.name!r} needs {', '.join(sorted(missing))}, which is neither a "
                f"field of the data nor an option (there are: {', '.join(sorted(columns))})"
            )
        return {
            name: values
            for name, values in columns.items()
            if (self.takes is None or name in self.takes) and name not in self.options
        }


def imports(specs: Sequence[RewardFunctionConfig]) -> dict[str, str]:
    """What worker processes must import: isolated functions, each with a package or "".

    Raises:
      ValueError: for a reward that is listed twice or does not exist, or settings of isolated
        rewards on one that is not.
      ImportError: naming the extra, if a built-in reward needs a package that is not installed.
    """
    wanted: dict[str, str] = {}
    names = [spec.name for spec in specs]
    for spec in specs:
        if names.count(spec.name) > 1:
            raise ValueError(f"reward.functions: {spec.name!r} is listed twice")
        entry = REWARDS.get(spec.name)
        if entry is None and ":" not in spec.name:
            raise ValueError(
                f"reward.functions: must be one of {', '.join(REWARDS)} or "
                f"package.module:function, got {spec.name!r}{suggestion(spec.name, REWARDS)}"
            )
        if entry and entry.package and importlib.util.find_spec(entry.package) is None:
            raise ImportError(
                f"reward {spec.name!r} needs {entry.package}: pip install 'jgrpo[{entry.extra}]'"
            )
        if is_isolated(spec):
            wanted[_path(spec)] = entry.package if entry else ""
        _check_policy(spec)
    return wanted


def is_isolated(spec: RewardFunctionConfig) -> bool:
    """Whether a reward runs in worker processes: all outside ones do."""
    entry = REWARDS.get(spec.name)
    return entry is None or entry.isolated or entry.isolated_by in spec.options


def built_in(spec: RewardFunctionConfig, task: Task, pool: Pool | None) -> Reward:
    """Makes a built-in reward.

    Args:
      spec: its lines in the config.
      task: gives `regex_format` its default pattern.
      pool: the worker processes, used if the reward is isolated.

    Raises:
      ValueError: for an option that does not exist or has a wrong value.
    """
    function = REWARDS[spec.name].function
    parameters = inspect.signature(function).parameters.values()
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
    _check_options(spec.name, function, options)
    check = REWARDS[spec.name].check
    if check is not None and (problem := check(options)):
        raise ValueError(f"reward {spec.name!r}: {problem}")
    isolated = is_isolated(spec)
    return Reward(
        spec=spec,
        path=_path(spec),
        options=options,
        needs=needs,
        takes=needs,
        function=None if isolated else function,
        pool=pool if isolated else None,
    )


def outside(spec: RewardFunctionConfig, described: Description, pool: Pool) -> Reward:
    """Makes a reward of a user's function.

    Args:
      spec: its lines in the config.
      described: its signature.
      pool: the worker processes.

    Raises:
      ValueError: for an option that it does not take, or if it cannot be called by name.
    """
    if described.positional:
        raise ValueError(
            f"reward {spec.name!r}: must take its arguments by name, but "
            f"{', '.join(described.positional)} can be given by position only"
        )
    if not described.takes_all:
        allowed = [name for name in described.named if name not in _ARGUMENTS]
        _known_options(spec.name, spec.options, allowed)
    required = set(described.required) - set(spec.options) - set(TRL_ARGUMENTS)
    return Reward(
        spec=spec,
        path=spec.name,
        options=dict(spec.options),
        needs=frozenset(required),
        takes=None if described.takes_all else frozenset(described.named),
        pool=pool,
    )


def _path(spec: RewardFunctionConfig) -> str:
    if spec.name not in REWARDS:
        return spec.name
    function = REWARDS[spec.name].function
    return f"{function.__module__}:{function.__qualname__}"


def _check_policy(spec: RewardFunctionConfig) -> None:
    if not is_isolated(spec):
        default = RewardFunctionConfig(name=spec.name)
        for field in ("per", "on_failure", "failure_value"):
            if (value := getattr(spec, field)) != getattr(default, field):
                raise ValueError(
                    f"reward {spec.name!r}: {field} = {value!r} has no effect, because it is "
                    "simple string work and runs inside the trainer; remove the setting"
                )
    if spec.failure_value and spec.on_failure != "value":
        raise ValueError(
            f"reward {spec.name!r}: failure_value = {spec.failure_value!r} has no effect with "
            f"on_failure '{spec.on_failure}'; set on_failure: value"
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
