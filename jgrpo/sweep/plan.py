"""The runs of a sweep: every combination as a checked config with a folder of its own.

Equal combinations are run once. A run's folder is named after its settings, so that it is found
again when the file grows. Random values depend on the seed, the key and the number of the draw
alone: more draws, or other keys, do not change them.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from jgrpo import config_io
from jgrpo.config import Config
from jgrpo.config_methods import Problem
from jgrpo.config_schema import shown
from jgrpo.config_yaml import KeyPath
from jgrpo.data.draws import stream
from jgrpo.sweep.file import DIR, SEED, Draws, Sweep

Settings: TypeAlias = Mapping[str, Any]
"""Values by dotted config key."""

_MAX_NAME = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      index: its number, from 0.
      name: its folder within that of the sweep.
      settings: what differs between the runs, the seed left out.
      cfg: its config.
      words: `key=value` words that make the base this config.
    """

    index: int
    name: str
    settings: Settings
    cfg: Config
    words: tuple[str, ...]


def expand(sweep: Sweep, overrides: Sequence[str] = ()) -> tuple[SweepRun, ...]:
    """Makes the config of every combination, the seeds of a combination beside each other.

    Args:
      sweep: the file; one with `optuna` has no runs yet, and the ends of its ranges are checked.
      overrides: `key=value` words for all runs.

    Raises:
      ConfigError: with all problems of all configs, each named by the line of the sweep file.
    """
    if sweep.study is not None:
        make_runs(sweep, corners(sweep.study), overrides)
        return ()
    return make_runs(sweep, _combinations(sweep), overrides)


def make_runs(
    sweep: Sweep, combinations: Iterable[Settings], overrides: Sequence[str]
) -> tuple[SweepRun, ...]:
    """Makes the config of each of the given combinations with each seed.

    Raises:
      ConfigError: as `expand`.
    """
    problems = _clashes(sweep, overrides)
    if problems:
        raise config_io.ConfigError(str(sweep.path), problems)
    runs: dict[str, SweepRun] = {}
    found: dict[Problem, list[str]] = {}
    for settings, seed in itertools.product(combinations, sweep.seeds or [None]):
        name = _name(settings, seed)
        if name in runs:
            continue
        seeded = {} if seed is None else {SEED: seed}
        varied = {**settings, **seeded, DIR: str(Path(sweep.dir) / name)}
        words = (*overrides, *(f"{key}={json.dumps(value)}" for key, value in varied.items()))
        try:
            cfg = config_io.load(sweep.base, words)
        except config_io.ConfigError as error:
            for problem in error.problems:
                found.setdefault(_placed(sweep, problem, settings), []).append(name)
            continue
        for problem in _metric_problems(sweep, cfg):
            found.setdefault(problem, []).append(name)
        runs[name] = SweepRun(index=len(runs), name=name, settings=settings, cfg=cfg, words=words)
    if found:
        problems = [
            dataclasses.replace(problem, message=f"{problem.message} (in {_listed(names)})")
            for problem, names in found.items()
        ]
        raise config_io.ConfigError(str(sweep.path), problems)
    return tuple(runs.values())


def draw(draws: Draws, index: int) -> dict[str, Any]:
    """Returns the values of one draw."""
    return {
        key: spread.at(next(stream(f"sweep/{draws.seed}/{index}/{key}")) / 2.0**64)
        for key, spread in draws.keys.items()
    }


def corners(draws: Draws) -> list[dict[str, Any]]:
    """Returns combinations in which each setting takes each of its ends or choices once."""
    longest = max((len(spread.values) for spread in draws.keys.values()), default=0)
    return [
        {key: spread.values[i % len(spread.values)] for key, spread in draws.keys.items()}
        for i in range(longest)
    ]


def _combinations(sweep: Sweep) -> list[Settings]:
    grid = [dict(zip(sweep.grid, values, strict=True)) for values in _product(sweep.grid)]
    rows = zip(*sweep.together.values(), strict=True)
    together = [dict(zip(sweep.together, row, strict=True)) for row in rows] or [{}]
    drawn = [{}] if sweep.random is None else _draws(sweep.random)
    return [a | b | c for a, b, c in itertools.product(grid, together, drawn)]


def _product(grid: Mapping[str, Sequence[Any]]) -> Iterable[tuple[Any, ...]]:
    return itertools.product(*grid.values())


def _draws(draws: Draws) -> list[dict[str, Any]]:
    return [draw(draws, index) for index in range(draws.count)]


def _clashes(sweep: Sweep, overrides: Sequence[str]) -> list[Problem]:
    """Words of the command line that the file decides."""
    swept = {*sweep.grid, *sweep.together}
    for draws in (sweep.random, sweep.study):
        swept |= set(draws.keys) if draws else set()
    swept |= {SEED} if sweep.seeds else set()
    problems = []
    for word in overrides:
        key = word.partition("=")[0]
        if key == DIR:
            message = f"is set by the sweep; the runs lie in its dir, {sweep.dir!r}"
            problems.append(Problem(key, message, "command line"))
        elif key in swept:
            message = "varies in the sweep; change it there, or leave it out here"
            problems.append(Problem(key, message, "command line"))
    return problems


def _metric_problems(sweep: Sweep, cfg: Config) -> list[Problem]:
    """The metric must be one that the last evaluation of the run will have."""
    count = cfg.eval.samples_per_prompt
    ks = sorted({*(2**i for i in range(count.bit_length()) if 2**i <= count), count} - {0})
    known = [f"eval/{name}" for name in ("greedy_accuracy", "finished_rate", "length_mean")]
    known += ["eval/format_rate", *(f"eval/pass@{k}" for k in ks)]
    known += [f"eval/maj@{count}"] if count else []
    if sweep.metric in known:
        return []
    message = f"must be one of {', '.join(known)} with eval.samples_per_prompt={count}"
    line = sweep.lines.get(("metric",))
    where = f"line {line}" if line else ""
    return [Problem("metric", f"{message}, got {shown(sweep.metric)}", where)]


def _placed(sweep: Sweep, problem: Problem, settings: Settings) -> Problem:
    """A problem of one config, named by where the sweep file or its base says so."""
    inside = [key for key in settings if f"{problem.key}.".startswith(f"{key}.")]
    if problem.key.startswith(SEED) and sweep.seeds:
        line = sweep.lines.get(("seeds",))
    elif inside:
        line = _line(sweep, max(inside, key=len), settings)
    elif problem.where.startswith("line"):
        return dataclasses.replace(problem, where=f"{sweep.base.name} {problem.where}")
    else:
        return problem
    return dataclasses.replace(problem, where=f"line {line}")


def _line(sweep: Sweep, key: str, settings: Settings) -> int | None:
    """The line of a setting, of its very value where that stands in a list."""
    paths: list[KeyPath] = []
    for block, lists in (("grid", sweep.grid), ("zip", sweep.together)):
        if key in lists:
            paths = [(block, key, str(list(lists[key]).index(settings[key]))), (block, key)]
    paths += [(block, "keys", key) for block in ("random", "optuna")]
    return next((sweep.lines[path] for path in paths if path in sweep.lines), None)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} runs, first {names[0]}"


# Names


def _name(settings: Settings, seed: int | None) -> str:
    """A folder's name that says what is in it; the same settings always have the same."""
    parts = [f"{label}={_value(settings[key])}" for key, label in labels(settings).items()]
    parts += [] if seed is None else [f"seed={seed}"]
    plain = "_".join(parts)
    safe = re.sub(r"[^\w.=+-]+", "-", plain, flags=re.ASCII)[:_MAX_NAME]
    exact = all(_is_exact(value) for value in settings.values())
    if safe == plain and exact:
        return safe
    content = json.dumps([dict(settings), seed], sort_keys=True)
    return f"{safe}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def labels(keys: Iterable[str]) -> dict[str, str]:
    """Returns short names of settings: the last part of each key, where that is clear.

    Example:
      >>> labels(["optim.lr", "method.name", "model.name"])
      {'optim.lr': 'lr', 'method.name': 'method.name', 'model.name': 'model.name'}
    """
    keys = list(keys)
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)
    }


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _is_exact(value: Any) -> bool:
    """Whether the name says the value in full and cannot be taken for another one."""
    if isinstance(value, float):
        return float(f"{value:g}") == value
    if isinstance(value, str):
        return value[:1].isalpha() and "=" not in value and value not in ("true", "false", "null")
    return isinstance(value, int | None)
