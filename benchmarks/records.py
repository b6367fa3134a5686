"""Runs that are made once and recorded in a file each, and statistics over their seeds.

What `compare.py`, `reproduce.py` and `experts.py` share: a run is a JSON file under a folder, with
the settings it was made with; a run that raises is recorded as a failure. Nothing here knows a
method.
"""

import contextlib
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

from jgrpo.config import Config
from jgrpo.export import export
from jgrpo.files import read_json, write_atomically
from jgrpo.run import train
from jgrpo.stopping import EXIT_CODES, Stopped

TRIES = 3
"""Processes that may die at a run before it is recorded as a failure."""
CRASHES = 20
"""Processes that may die besides."""
Record = dict[str, Any]


def keep_compiled(out: Path) -> None:
    """Makes the folder, and has jax keep compiled programs in it unless they are kept elsewhere."""
    out.mkdir(parents=True, exist_ok=True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def make_with(command: Sequence[str], jobs: int, runs: int) -> None:
    """Runs a command in some processes until each has ended well; several have one thread each.

    Args:
      command: what to run; it is begun again where a signal has ended it.
      jobs: processes.
      runs: how many runs they make in all.

    Raises:
      RuntimeError: if one fails, or signals have ended more than TRIES a run and CRASHES.
    """
    environment = os.environ | ({"NPROC": "1"} if jobs > 1 else {})
    start = lambda: subprocess.Popen(command, env=environment)  # noqa: E731
    workers, crashes = [start() for _ in range(jobs)], 0
    try:
        while workers:
            time.sleep(0.2)
            for i, worker in enumerate(workers):
                code = worker.poll()
                if code is None:
                    continue
                died = code < 0 or code == EXIT_CODES["SIGTERM"]
                crashes += died
                if (code and not died) or crashes > TRIES * runs + CRASHES:
                    raise RuntimeError(f"a worker ended with {code} (signals: {crashes})")
                workers[i : i + 1] = [start()] if code else []
                break
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


@contextlib.contextmanager
def taken(out: Path, stem: str) -> Iterator[bool]:
    """Takes a run for this process; yields False where another one has it."""
    path = out / "taken" / stem
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def recorded(out: Path, stem: str, known: Record, make: Callable[[Path], Record]) -> Record:
    """The record of a run, from its file or from making it.

    Args:
      out: where the files lie.
      stem: name of the file, and of the run's folder.
      known: what is known of the run beforehand; all of it decides whether a file is of this run.
      make: makes the run in a folder and gives what is measured of it. Whatever it raises is the
        run's result, and so is that TRIES processes have died at it.

    Raises:
      ValueError: if the file is of a run with other settings.
      SystemExit: with the code of the signal that has stopped the run, which leaves no record.
    """
    path = out / f"{stem}.json"
    if path.exists():
        return checked(path, known)
    folder, begin, record = out / "runs" / stem, time.perf_counter(), dict(known)
    begun = out / "begun" / stem  # a byte for each process that began it and has died
    begun.parent.mkdir(exist_ok=True)
    died = begun.stat().st_size if begun.exists() else 0
    try:
        if died >= TRIES:
            raise RuntimeError(f"{died} processes died at it")
        begun.write_text("x" * (died + 1))
        record |= make(folder)
    except Stopped as stopped:
        sys.exit(EXIT_CODES[stopped.signal])
    except Exception as error:  # whatever ended the run is its result
        record |= {"failure": f"{type(error).__name__}: {error}"}
    finally:
        begun.unlink(missing_ok=True)
    record |= {"seconds": round(time.perf_counter() - begin, 1), "load": os.getloadavg()[0]}
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    print(stem, record.get("failure") or record["accuracy"], f"{record['seconds']} s", flush=True)
    return record


def checked(path: Path, known: Record) -> Record:
    """The record in a file.

    Args:
      path: the file.
      known: what is known of the run; see `recorded`.

    Raises:
      ValueError: naming the file and what differs, if it is of a run with other settings.
    """
    record = read_json(path)
    other = [name for name, value in known.items() if record.get(name) != value]
    if other:
        raise ValueError(
            f"{path} is of other settings ({', '.join(other)}); delete it, or take another --out"
        )
    return record


def origin(folder: Path) -> Record:
    """Commit and jax version of a run."""
    facts = json.loads((folder / "environment.json").read_text())
    return {"commit": facts["commit"], "jax": facts["jax"]}


def skipped(rows: Sequence[Record]) -> Record:
    """A failure, if updates of a run were skipped because they were not finite."""
    count = sum(row["optim/skipped_updates"] for row in rows)
    return {"failure": f"{count:.0f} updates were not finite"} if count else {}


def by(records: Sequence[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """The records that agree in some fields, in the order of their coming."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[name] for name in names), []).append(record)
    return found


def taught(folder: Path, made: Record, load: Callable[[], Config]) -> None:
    """Trains and exports what runs begin with, if it is not there.

    Args:
      folder: of the training run; the export lies in it.
      made: what it is made of.
      load: gives the config of the training run.

    Raises:
      ValueError: if one is there that was made otherwise.
    """
    if (folder / "exported").exists():
        checked(folder / "made.json", made)
        return
    begin = time.perf_counter()
    train(load())
    seconds = round(time.perf_counter() - begin, 1)
    write_atomically(folder / "made.json", json.dumps(made | {"seconds": seconds}) + "\n")
    export(folder, folder / "exported")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of Student's 95 % interval; nan for fewer than two values."""
    if len(values) < 2:
        return float(np.mean(values)) if values else math.nan, math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * error


def plus_minus(values: Sequence[float], style: str = ".3f") -> str:
    """Mean and interval as text, in a style of `format`; a dash without values."""
    if not values:
        return "-"
    mean, half = interval(values)
    return f"{mean:{style}}" + ("" if math.isnan(half) else f" ± {half:{style}}")


def failures(runs: Sequence[Record]) -> str:
    """How many of the runs failed, and what each of them says, for a cell of a table."""
    failed = [run for run in runs if "failure" in run]
    said = "; ".join(f"seed {run['seed']}: {_short(run)}" for run in failed)
    return f"{len(failed)} of {len(runs)}{f' ({said})' * bool(failed)}"


def _short(record: Record) -> str:
    first = record["failure"].splitlines()[0].replace("|", "/")
    return first if len(first) <= 80 else first[:77] + "..."


def draw_interval(axes: Any, values: Sequence[float], height: float) -> None:
    """Draws each seed's value as a dot, and mean and interval over them."""
    axes.plot(values, [height] * len(values), ".", color="0.6")
    if values:
        mean, half = interval(values)
        width = None if math.isnan(half) else half
        axes.errorbar(mean, height, xerr=width, fmt="o", color="C0", capsize=3)
