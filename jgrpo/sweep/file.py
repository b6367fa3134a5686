"""A sweep as a file: which settings of a base config vary, and how.

    base: ../quickstart.yaml          a config, relative to this file
    dir: runs/lr_clip                 folder of the runs, relative to where the command is run
    grid: {optim.lr: [1e-4, 3e-4]}    every combination
    zip: {a.b: [1, 2], c.d: [3, 4]}   together: the first values, then the second
    random: {count: 8, seed: 0, keys: {optim.lr: {log_uniform: [1e-5, 1e-3]}}}
    seeds: [0, 1, 2]                  each of the above with each run.seed

or, in place of grid, zip and random (it needs the extra `sweep`):

    optuna: {n_trials: 20, seed: 0, keys: {optim.lr: {log_uniform: [1e-5, 1e-3]}}}

Only the form is read here; `plan.py` makes configs of it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from jgrpo import config_io, config_yaml
from jgrpo.config_methods import Problem
from jgrpo.config_schema import shown, suggestion
from jgrpo.config_yaml import KeyPath

Kind: TypeAlias = Literal["uniform", "log_uniform", "int", "choice"]
Direction: TypeAlias = Literal["maximize", "minimize"]
SEED = "run.seed"
DIR = "run.dir"
METRIC = "eval/greedy_accuracy"
"""What runs are compared by if a file names nothing else: a metric of the last evaluation."""

_KEYS = ("base", "dir", "metric", "direction", "grid", "zip", "random", "seeds", "optuna")


@dataclasses.dataclass(frozen=True)
class Distribution:
    """How the value of a setting is drawn.

    Attributes:
      kind: `uniform` and `log_uniform` between two numbers, `int` between two whole numbers, both
        included, or `choice` of the values.
      values: the two ends, or the choices.
    """

    kind: Kind
    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """Returns the value below which the given share (0 to 1, exclusive) of the draws lies."""
        if self.kind == "choice":
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if self.kind == "int":
            return low + int(share * (high - low + 1))
        if self.kind == "log_uniform":
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """Returns a number that a folder can be named after: four digits, of the range at least."""
        low, high = self.values
        sizes = [size for size in (high - low, abs(value)) if size > 0]
        digits = max(3 - math.floor(math.log10(size)) for size in sizes)
        return min(max(round(value, digits), float(low)), float(high))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """Settings whose values are drawn, by `random` or by `optuna`.

    Attributes:
      count: how many draws.
      seed: names the draws.
      keys: the settings.
    """

    count: int
    seed: int
    keys: Mapping[str, Distribution]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file that has been read.

    Attributes:
      path: the file.
      base: the config that the settings change.
      dir: folder of the runs.
      metric: what runs are compared by, as `metrics.jsonl` names it.
      direction: whether more of it is better.
      grid: values of which every combination is run.
      together: values that change together (`zip`).
      random: values that are drawn.
      seeds: values of `run.seed` for each combination; empty: that of the base.
      study: values that optuna chooses, instead of all of the above but the seeds.
      lines: where the keys stand in the file.
    """

    path: Path
    base: Path
    dir: str
    metric: str
    direction: Direction
    grid: Mapping[str, Sequence[Any]]
    together: Mapping[str, Sequence[Any]]
    random: Draws | None
    seeds: Sequence[int]
    study: Draws | None
    lines: Mapping[KeyPath, int]


def read(path: str | Path) -> Sweep:
    """Reads a sweep file.

    Raises:
      ConfigError: with all problems of the file's form.
    """
    path = Path(path)
    try:
        document = config_yaml.read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 text ({error})"
        message = f"must be a readable YAML file, got: {reason}"
        raise config_io.ConfigError(str(path), [Problem("", message)]) from None
    problems = [Problem(".".join(f.key), f.message, _line(f.line)) for f in document.faults]
    if not isinstance(document.value, dict):
        if not problems:
            message = f"must be a mapping with the keys {', '.join(_KEYS)}"
            problems.append(Problem("", f"{message}, got {shown(document.value)}"))
        raise config_io.ConfigError(str(path), problems)
    reader = _Reader(document.value, document.lines, problems)
    sweep = reader.sweep(path)
    if problems:
        raise config_io.ConfigError(str(path), problems)
    return sweep


class _Reader:
    """Takes the parts of a file one by one and notes what is wrong with them."""

    def __init__(
        self, tree: dict[str, Any], lines: Mapping[KeyPath, int], problems: list[Problem]
    ) -> None:
        self.tree, self.lines, self.problems = tree, lines, problems

    def sweep(self, path: Path) -> Sweep:
        for name in self.tree:
            if name not in _KEYS:
                hint = suggestion(name, _KEYS)
                self.fault((name,), f"unknown key{hint} (known: {', '.join(_KEYS)})")
        sweep = Sweep(
            path=path,
            base=path.parent / self.text("base", None),
            dir=self.text("dir", None),
            metric=self.text("metric", METRIC),
            direction=self.direction(),
            grid=self.lists("grid"),
            together=self.lists("zip"),
            random=self.draws("random", "count"),
            seeds=self.seeds(),
            study=self.draws("optuna", "n_trials"),
            lines=self.lines,
        )
        if not sweep.base.is_file() and "base" in self.tree:
            self.fault(("base",), f"must be a config file, relative to {path.parent}/")
        lengths = {key: len(values) for key, values in sweep.together.items()}
        if len(set(lengths.values())) > 1:
            self.fault(("zip",), f"must have lists of one length, got {lengths}")
        self.keys_once(sweep)
        return sweep

    def keys_once(self, sweep: Sweep) -> None:
        """Each setting has one block that says what it is, and the sweep sets the folder."""
        seen: dict[str, str] = {}
        blocks: dict[str, Mapping[str, Any]] = {"grid": sweep.grid, "zip": sweep.together}
        blocks["random"] = sweep.random.keys if sweep.random else {}
        if sweep.study and (others := [name for name, keys in blocks.items() if keys]):
            message = f"chooses the values itself; leave out {', '.join(others)}"
            self.fault(("optuna",), message)
        if not any(name in self.tree for name in ("optuna", "seeds", *blocks)):
            self.fault((), "nothing varies; give one of grid, zip, random, seeds, optuna")
        blocks |= {"optuna": sweep.study.keys} if sweep.study else {}
        for block, keys in blocks.items():
            for key in keys:
                place = (block, "keys", key) if block in ("random", "optuna") else (block, key)
                if key == DIR:
                    self.fault(place, "is set by the sweep: <dir>/<name>; leave it out")
                elif key == SEED:
                    self.fault(place, "is averaged over; list its values under `seeds`")
                elif key in seen:
                    self.fault(place, f"varies already in {seen[key]}; leave one of them out")
                seen[key] = block

    def fault(self, key: KeyPath, message: str) -> None:
        lines = (self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines)
        self.problems.append(Problem(".".join(key), message, _line(next(lines, None))))

    def text(self, name: str, default: str | None) -> str:
        value = self.tree.get(name, default)
        if not isinstance(value, str) or not value:
            missing = "missing; " if name not in self.tree else ""
            self.fault((name,), f"{missing}must be text, got {shown(value)}")
            return ""
        return value

    def direction(self) -> Direction:
        value = self.tree.get("direction", "maximize")
        if value not in get_args(Direction):
            self.fault(("direction",), f"must be maximize or minimize, got {shown(value)}")
            return "maximize"
        return value

    def mapping(self, key: KeyPath, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            self.fault(key, f"must be a mapping of dotted config keys, got {shown(value)}")
            return {}
        return value

    def lists(self, name: str) -> dict[str, list[Any]]:
        if name not in self.tree:
            return {}
        found = {}
        for key, values in self.mapping((name,), self.tree[name]).items():
            if not isinstance(values, list) or not values:
                self.fault((name, key), f"must be a list of values, got {shown(values)}")
            elif any(value in values[:i] for i, value in enumerate(values)) and name == "grid":
                self.fault((name, key), f"must list each value once, got {shown(values)}")
            else:
                found[key] = values
        return found

    def seeds(self) -> list[int]:
        value = self.tree.get("seeds", [])
        whole = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
        if not whole or len(set(value)) < len(value) or ("seeds" in self.tree and not value):
            message = "must be a list of different whole numbers of at least 0"
            self.fault(("seeds",), f"{message}, got {shown(value)}")
            return []
        return value

    def draws(self, name: str, count: str) -> Draws | None:
        if name not in self.tree:
            return None
        block = self.mapping((name,), self.tree[name])
        for key in block:
            if key not in (count, "seed", "keys"):
                self.fault((name, key), f"unknown key (known: {count}, seed, keys)")
        keys = self.mapping((name, "keys"), block.get("keys")).items() if block else ()
        spread = {key: self.distribution((name, "keys", key), value) for key, value in keys}
        return Draws(
            count=self.whole((name, count), block.get(count), 1),
            seed=self.whole((name, "seed"), block.get("seed", 0), 0),
            keys={key: value for key, value in spread.items() if value is not None},
        )

    def whole(self, key: KeyPath, value: Any, least: int) -> int:
        if type(value) is not int or value < least:
            self.fault(key, f"must be a whole number of at least {least}, got {shown(value)}")
            return least
        return value

    def distribution(self, key: KeyPath, value: Any) -> Distribution | None:
        kinds = get_args(Kind)
        if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in kinds:
            listed = ", ".join(f"{{{kind}: [..]}}" for kind in kinds)
            self.fault(key, f"must be one of {listed}, got {shown(value)}")
            return None
        ((kind, values),) = value.items()
        if not _fits(kind, values):
            above = " above 0" if kind == "log_uniform" else ""
            what = {"choice": "a list of values", "int": "[low, high], two whole numbers"}
            message = f"must be {what.get(kind, f'[low, high], two numbers{above}')}"
            self.fault((*key, kind), f"{message}, got {shown(values)}")
            return None
        return Distribution(kind, tuple(values))


def _fits(kind: Kind, values: Any) -> bool:
    """Whether the values can be the choices, or the two ends, of a distribution."""
    if not isinstance(values, list) or not values:
        return False
    if kind == "choice":
        return True
    numbers = (int,) if kind == "int" else (int, float)
    if len(values) != 2 or any(type(value) not in numbers for value in values):
        return False
    low, high = values
    positive = kind != "log_uniform" or low > 0
    return math.isfinite(low) and math.isfinite(high) and low < high and positive


def _line(number: int | None) -> str:
    return f"line {number}" if number else ""
