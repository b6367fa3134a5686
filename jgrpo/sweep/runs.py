"""Runs a sweep: every run in a process of its own, one after the other, each to its end.

A finished run is passed over, one that was cut off continues, one that fails is recorded and the
next begins. The file is read in `file.py`, its runs are made in `plan.py`, and their
results are read in `table.py`.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

from rich.console import Console

from jgrpo import config_io
from jgrpo.config_methods import Problem
from jgrpo.files import write_atomically
from jgrpo.stopping import EXIT_CODES, Stopped
from jgrpo.sweep.file import Sweep, read
from jgrpo.sweep.parents import Parents
from jgrpo.sweep.plan import SweepRun, expand, make_runs
from jgrpo.sweep.table import (
    Outcome,
    failure_file,
    look,
    plan_table,
    result_table,
    write_tables,
)

_TRAIN = "from jgrpo.cli import train_main; raise SystemExit(train_main())"
"""What a process of a run does: the command `train.py`, wherever the package is installed."""
_MAX_MESSAGE = 1000
_POLL_S = 0.2


def run_sweep(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    index: int | None = None,
    show: Literal["run", "plan"] = "run",
    joins: bool = False,
) -> int:
    """Runs what a sweep file describes, or prints what that would be.

    Of several processes, one on each host, each runs its part of every run; the first writes.

    Args:
      path: the file.
      overrides: `key=value` words for all runs.
      index: run this one only; None for all.
      show: `plan` prints the runs and their status, and runs nothing.
      joins: whether to look for the other hosts of a sweep that several run together.

    Returns:
      The exit code: 0 if all runs are finished, 1 if one has failed.

    Raises:
      ConfigError: for a bad file, or a combination that is no config; nothing has run then.
      ImportError: naming the extra, for `optuna` where that is not installed.
      Stopped: if SIGTERM or SIGINT has ended a run; the same command continues.
    """
    sweep = read(path)
    runs = expand(sweep, overrides)
    if index is not None and sweep.study is not None:
        message = "has no meaning with optuna, whose runs depend on each other; leave it out"
        raise config_io.ConfigError(str(path), [Problem("--index", message)])
    if index is not None and not 0 <= index < len(runs):
        message = f"must be 0 to {len(runs) - 1}, the runs of the sweep, got {index}"
        raise config_io.ConfigError(str(path), [Problem("--index", message)])
    if show == "plan":
        _show_plan(sweep, runs if index is None else runs[index : index + 1], overrides)
        return 0
    with Parents(joins) as parents:
        parents.check_alike(_digest(sweep, runs, overrides, index))
        console = Console(quiet=not parents.is_first)
        if sweep.study is not None:
            return _run_study(sweep, overrides, parents, console)
        chosen = runs if index is None else (runs[index],)
        if index is None:
            console.print(plan_table([look(sweep, run) for run in chosen]))
        outcomes = run_all(sweep, chosen, parents, console)
        if parents.is_first:
            write_tables(sweep, runs)
        if index is None:
            console.print(result_table(sweep, outcomes))
        return report(sweep, outcomes, console)


def _digest(
    sweep: Sweep, runs: Sequence[SweepRun], overrides: Sequence[str], index: int | None
) -> str:
    """What decides which runs are made, and how, in a few letters."""
    what = [sweep.path.read_text(encoding="utf-8"), [run.words for run in runs], overrides, index]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def _show_plan(sweep: Sweep, runs: Sequence[SweepRun], overrides: Sequence[str]) -> None:
    """Prints the runs and what has become of them."""
    console = Console()
    if sweep.study is not None:
        from jgrpo.sweep.study import Study, study_file

        study = Study(sweep) if study_file(sweep).is_file() else None
        finished = study.finished if study else 0
        _say(console, f"{finished} of {sweep.study.count} trials are finished")
        if study is None:
            return
        runs = make_runs(sweep, study.tried(), overrides)
    console.print(plan_table([look(sweep, run) for run in runs]))


def run_all(
    sweep: Sweep, runs: Sequence[SweepRun], parents: Parents, console: Console
) -> list[Outcome]:
    """Brings each run to its end, unless it has been there, or fails.

    Raises:
      Stopped: if a signal has ended a run.
    """
    outcomes = []
    for number, run in enumerate(runs, start=1):
        outcome = _look(sweep, run, parents)
        if outcome.status != "done":
            _say(console, f"[{number}/{len(runs)}] {run.name}: {outcome.status}, starting")
            _run(sweep, run, parents, console)
            outcome = _look(sweep, run, parents)
        value = "" if outcome.after is None else f", {sweep.metric} {outcome.after:.4g}"
        _say(console, f"[{number}/{len(runs)}] {run.name}: {outcome.status}{value}")
        outcomes.append(outcome)
    return outcomes


def _look(sweep: Sweep, run: SweepRun, parents: Parents) -> Outcome:
    """What the folder of a run says to the first process."""

    def facts() -> dict[str, Any]:
        outcome = look(sweep, run)
        return {name: getattr(outcome, name) for name in ("status", "detail", "before", "after")}

    return Outcome(run=run, **parents.from_first(facts))


def report(sweep: Sweep, outcomes: Sequence[Outcome], console: Console) -> int:
    """Says where the results lie and what has failed; returns the exit code of the sweep."""
    _say(console, f"Written: {sweep.dir}/table.csv (settings) and {sweep.dir}/runs.csv (runs).")
    unfinished = [outcome for outcome in outcomes if outcome.status != "done"]
    if unfinished:
        names = "".join(f"\n  {o.run.name}: {o.status}: {o.detail}" for o in unfinished)
        _say(console, f"{len(unfinished)} of {len(outcomes)} runs are not finished:{names}")
        again = "" if sweep.study else "; the same command tries them again"
        _say(console, f"What they said lies in {sweep.dir}/logs{again}.")
    return 1 if unfinished else 0


class _End(NamedTuple):
    """How the part of a run on one host has ended.

    Attributes:
      code: the exit code of its process.
      asked: the signal that has asked it to stop; empty if none has.
      message: what it said if it failed; empty if it did not.
    """

    code: int
    asked: str
    message: str


def _run(sweep: Sweep, run: SweepRun, parents: Parents, console: Console) -> None:
    """Runs `train.py` in a process of its own, on every host, and notes it if that fails.

    Raises:
      Stopped: if a signal to this process or the other has ended it.
    """
    failed = failure_file(sweep, run)
    failed.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    errors = failed.with_name(f"{run.name}{parents.suffix}.stderr")
    command = [sys.executable, "-c", _TRAIN, str(sweep.base), *run.words]
    environment = os.environ | parents.meeting()
    with errors.open("wb") as stderr, signals_passed_on() as passed_on:
        # A group of its own: a signal of the terminal reaches it through us, once.
        child = subprocess.Popen(command, stderr=stderr, process_group=0, env=environment)
        passed_on.to(child)
        code = _follow(child, errors)
        asked = passed_on.name or {code: name for name, code in EXIT_CODES.items()}.get(code, "")
        text = errors.read_text(encoding="utf-8", errors="replace")
        own = _End(code, asked, _message(code, text) if code and not asked else "")
        ends = [_End(*json.loads(said)) for said in parents.exchange(json.dumps(own))]
    # Where a run fails on one host, those of the others end as if they had been asked to.
    failures = sorted((end for end in ends if end.message), key=lambda end: end.code < 0)
    if failures:
        found = {"exit_code": failures[0].code, "error": failures[0].message}
        if parents.is_first:
            write_atomically(failed, json.dumps(found) + "\n")
    elif asked := next((end.asked for end in ends if end.asked), ""):
        message = f"{run.name} was stopped by {asked}; the same command continues the sweep"
        raise Stopped(asked, message)


def _follow(child: subprocess.Popen[bytes], errors: Path) -> int:
    """Shows what a process writes to its file until it ends; returns its exit code.

    A pipe would keep us waiting for whatever the process leaves behind.
    """
    with errors.open(encoding="utf-8", errors="replace") as file:
        while True:
            code = child.poll()
            sys.stderr.write(file.read())
            sys.stderr.flush()
            if code is not None:
                return code
            time.sleep(_POLL_S)


def _message(code: int, text: str) -> str:
    """What a failed process had to say in the end: its error, or the last line of a traceback."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return " ".join(lines[starts[-1] :] if starts else lines[-1:])[:_MAX_MESSAGE]


class PassedOn:
    """Signals that this process hands to another one.

    Attributes:
      name: name of the last signal; empty before the first.
    """

    def __init__(self) -> None:
        self.name = ""
        self._child: subprocess.Popen[bytes] | None = None

    def to(self, child: subprocess.Popen[bytes]) -> None:
        """Names the process; it gets a signal that came before it was there."""
        self._child = child
        if self.name:
            child.send_signal(signal.Signals[self.name])

    def handle(self, number: int, _: FrameType | None) -> None:
        """Handles a signal of this process.

        An echo is handed on too (`timeout` sends a signal to a process and then to its group):
        `Stopping` takes signals in quick succession for one.
        """
        self.name = signal.Signals(number).name
        if self._child is not None:
            self._child.send_signal(number)


@contextlib.contextmanager
def signals_passed_on() -> Iterator[PassedOn]:
    """Hands SIGTERM and SIGINT on: the run saves and ends, and the sweep with it."""
    passed_on = PassedOn()
    with contextlib.ExitStack() as restore:
        # Handlers belong to the main thread; elsewhere signals do what they did.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                previous = signal.signal(number, passed_on.handle)
                restore.callback(signal.signal, number, previous)
        yield passed_on


def _run_study(sweep: Sweep, overrides: Sequence[str], parents: Parents, console: Console) -> int:
    """Runs the trials that are missing: the first process asks optuna, which has a file."""
    from jgrpo.sweep.study import Study

    assert sweep.study is not None
    study = Study(sweep) if parents.is_first else None
    finished = lambda: study.finished if study else 0  # noqa: E731
    while (done := parents.from_first(finished)) < sweep.study.count:
        _say(console, f"trial {done + 1} of {sweep.study.count}")
        trial, settings = study.ask() if study else (None, {})
        settings = parents.from_first(lambda: settings)  # noqa: B023
        outcomes = run_all(sweep, make_runs(sweep, [settings], overrides), parents, console)
        if study is not None and trial is not None:
            study.tell(trial, [outcome.after for outcome in outcomes])
    tried = parents.from_first(lambda: study.tried() if study else [])
    runs = make_runs(sweep, tried, overrides)
    outcomes = [_look(sweep, run, parents) for run in runs]
    if parents.is_first:
        write_tables(sweep, runs)
    console.print(result_table(sweep, outcomes))
    return report(sweep, outcomes, console)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
