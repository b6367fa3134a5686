"""What has become of the runs of a sweep, and how they compare: best first, over seeds.

Everything is read from the run folders, so the tables are right whoever ran what, and when.
"""

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rich.table import Table

from jgrpo import config_io
from jgrpo.evaluate import EvalReport
from jgrpo.files import read_json_if_there, write_atomically
from jgrpo.sweep.file import Sweep
from jgrpo.sweep.plan import SweepRun, labels

Status: TypeAlias = Literal["done", "failed", "cut off", "new", "other config"]
"""`cut off` continues from its newest checkpoint; `other config` is a folder that holds a run with
other settings than the sweep now gives it."""

_LOCK_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the folder of a run says.

    Attributes:
      run: the run.
      status: how far it has come.
      detail: what is the matter with it; empty if nothing is.
      before: the sweep's metric before training; None if unknown.
      after: the metric of the finished run; None if it is not finished.
    """

    run: SweepRun
    status: Status
    detail: str = ""
    before: float | None = None
    after: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of one setting.

    Attributes:
      outcomes: the runs, one a seed.
      values: the metric of those that are finished.
    """

    outcomes: tuple[Outcome, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean over the finished seeds; None if there are none."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def look(sweep: Sweep, run: SweepRun) -> Outcome:
    """Reads what the folder of a run says."""
    folder = Path(run.cfg.run.dir)
    failure = failure_file(sweep, run)
    if not (folder / "config.yaml").is_file():
        if failure.is_file():
            return Outcome(run=run, status="failed", detail=_failure(failure))
        return Outcome(run=run, status="new")
    try:
        differs = config_io.diff(config_io.load(folder / "config.yaml"), run.cfg)
    except config_io.ConfigError as error:
        return Outcome(run=run, status="other config", detail=str(error.problems[0]))
    summary = read_json_if_there(folder / "summary.json")
    before = _metric(summary.get("eval_before"), sweep.metric)
    if differs:
        detail = f"differs in {', '.join(differs)}"
        return Outcome(run=run, status="other config", detail=detail, before=before)
    after = _metric(summary.get("eval_after"), sweep.metric)
    if after is not None:
        return Outcome(run=run, status="done", before=before, after=after)
    if failure.is_file():
        return Outcome(run=run, status="failed", detail=_failure(failure), before=before)
    return Outcome(run=run, status="cut off", before=before)


def failure_file(sweep: Sweep, run: SweepRun) -> Path:
    """Where it is written that a run has failed; the file goes away when the run is tried again."""
    return Path(sweep.dir) / "logs" / f"{run.name}.failed"


def rows(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[Row]:
    """Joins the seeds of each setting; best first, those without a result last."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        key = json.dumps(dict(outcome.run.settings), sort_keys=True)
        groups.setdefault(key, []).append(outcome)
    found = [
        Row(
            outcomes=tuple(group),
            values=tuple(outcome.after for outcome in group if outcome.after is not None),
        )
        for group in groups.values()
    ]
    sign = -1.0 if sweep.direction == "maximize" else 1.0
    return sorted(found, key=lambda row: math.inf if row.mean is None else sign * row.mean)


def plan_table(outcomes: Sequence[Outcome]) -> Table:
    """Every run with its number, settings, seed and status, to print with rich."""
    table = Table(title=f"{len(outcomes)} runs", title_justify="left")
    short = labels(_keys(outcomes))
    for header in ("index", *short.values(), "seed", "status"):
        table.add_column(header, overflow="fold")
    for outcome in outcomes:
        settings = outcome.run.settings
        status = outcome.status + (f": {outcome.detail}" if outcome.detail else "")
        cells = [_cell(settings.get(key)) for key in short]
        table.add_row(str(outcome.run.index), *cells, str(outcome.run.cfg.run.seed), status)
    return table


def result_table(sweep: Sweep, outcomes: Sequence[Outcome]) -> Table:
    """The settings by the mean of their metric over seeds, best first, to print with rich."""
    table = Table(title=f"{sweep.metric} after training, held out", title_justify="left")
    short = labels(_keys(outcomes))
    for header in short.values():
        table.add_column(header, overflow="fold")
    for header in ("mean", "std", "min to max", "seeds"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows(sweep, outcomes):
        settings = row.outcomes[0].run.settings
        spread = f"{min(row.values):.4g} to {max(row.values):.4g}" if row.values else ""
        table.add_row(
            *(_cell(settings.get(key)) for key in short),
            _number(row.mean),
            _number(row.std),
            spread,
            f"{len(row.values)} of {len(row.outcomes)}",
        )
    return table


def write_tables(sweep: Sweep, runs: Sequence[SweepRun]) -> None:
    """Writes `table.csv`, a line a setting, best first, and `runs.csv`, a line a run.

    Raises:
      TimeoutError: if another process holds `table.lock` for a minute.
    """
    folder = Path(sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "table.lock"):
        # Read under the lock, so that the last of several processes sees all that is finished.
        seen = [look(sweep, run) for run in runs]
        keys = _keys(seen)
        header = [*keys, "metric", "mean", "std", "min", "max", "num_seeds", "num_unfinished"]
        lines: list[Sequence[Any]] = [header]
        for row in rows(sweep, seen):
            ends = (min(row.values), max(row.values)) if row.values else (None, None)
            unfinished = len(row.outcomes) - len(row.values)
            settings = [_plain(row.outcomes[0].run.settings.get(key)) for key in keys]
            numbers = (row.mean, row.std, *ends, len(row.values), unfinished)
            lines.append([*settings, sweep.metric, *numbers])
        write_atomically(folder / "table.csv", _csv(lines))
        lines = [["index", "name", *keys, "run.seed", "status", "before", "after", "detail"]]
        for outcome in seen:
            run = outcome.run
            settings = [_plain(run.settings.get(key)) for key in keys]
            facts = (outcome.status, outcome.before, outcome.after, outcome.detail)
            lines.append([run.index, run.name, *settings, run.cfg.run.seed, *facts])
        write_atomically(folder / "runs.csv", _csv(lines))


def _keys(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(key for outcome in outcomes for key in outcome.run.settings))


def _metric(report: Any, name: str) -> float | None:
    if not isinstance(report, dict):
        return None
    return EvalReport.from_json(report).metrics().get(name)


def _failure(path: Path) -> str:
    facts = read_json_if_there(path)
    return f"exit code {facts['exit_code']}: {facts['error']}"


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(_plain(value))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file for this process; the jobs of an array may finish at the same time."""
    deadline = time.monotonic() + _LOCK_S
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{path} was held by another process for {_LOCK_S:g} s; the tables were "
                        "not written. The same command writes them when that process is gone"
                    ) from None
                time.sleep(0.05)
        yield
