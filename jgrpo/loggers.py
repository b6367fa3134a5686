"""Trackers that a run may also write its metrics to: TensorBoard, Weights & Biases, trackio.

Each is an optional package, imported when its sink is opened. `metrics.jsonl` is always written
(`metrics.py`) and is the record that resume and reports rely on; a tracker is a view.
"""

import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jgrpo.config import LogConfig
from jgrpo.metrics import Number, plain_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sink:
    """An open tracker.

    Attributes:
      write: takes the number of a step and its metrics.
      close: flushes and ends it.
    """

    write: Callable[[int, Mapping[str, Number]], None]
    close: Callable[[], None]


def open_sinks(
    log: LogConfig, run_dir: Path, settings: Mapping[str, Any], finished_steps: int
) -> list[Sink]:
    """Opens the trackers that a config asks for.

    Args:
      log: which trackers.
      run_dir: the run folder; it names the run, and TensorBoard writes under it.
      settings: the resolved config as nested mappings, shown by the trackers.
      finished_steps: number of finished steps that the run continues from; 0 for a new run.

    Returns:
      The open sinks; close each at the end of the run.

    Raises:
      ModuleNotFoundError: if a tracker's package is missing; names the extra to install.
    """
    sinks: list[Sink] = []
    if log.tensorboard:
        sinks.append(tensorboard_sink(run_dir, finished_steps))
    if log.wandb_project:
        sinks.append(wandb_sink(log.wandb_project, run_dir, settings))
    if log.trackio_project:
        sinks.append(trackio_sink(log.trackio_project, run_dir, settings))
    return sinks


def tensorboard_sink(run_dir: Path, finished_steps: int) -> Sink:
    """Opens TensorBoard event files in `run_dir/tensorboard`, hiding steps that are run again."""
    package = _import("tensorboardX", extra="tensorboard", setting="log.tensorboard")
    writer = package.SummaryWriter(str(run_dir / "tensorboard"), purge_step=finished_steps or None)

    def write(step: int, metrics: Mapping[str, Number]) -> None:
        for name, value in _finite(metrics).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Sink(write=write, close=writer.close)


def wandb_sink(project: str, run_dir: Path, settings: Mapping[str, Any]) -> Sink:
    """Opens a Weights & Biases run that is named after the run folder and continued on resume."""
    package = _import("wandb", extra="wandb", setting="log.wandb_project")
    run = package.init(
        project=project,
        name=run_dir.name,
        id=_run_id(run_dir),
        resume="allow",
        dir=str(run_dir),
        config=dict(settings),
    )
    return Sink(write=lambda step, metrics: run.log(_finite(metrics), step=step), close=run.finish)


def trackio_sink(project: str, run_dir: Path, settings: Mapping[str, Any]) -> Sink:
    """Opens a trackio run that is named after the run folder and continued on resume."""
    package = _import("trackio", extra="trackio", setting="log.trackio_project")
    run = package.init(
        project=project,
        name=f"{run_dir.name}-{_run_id(run_dir)}",
        resume="allow",
        config=dict(settings),
    )
    return Sink(write=lambda step, metrics: run.log(_finite(metrics), step=step), close=run.finish)


def _import(name: str, *, extra: str, setting: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the package is there, and one of its own imports is broken
            raise
        raise ModuleNotFoundError(
            f"{setting} needs the package {name!r}, which is not installed; "
            f"pip install 'jgrpo[{extra}]', or turn {setting} off",
            name=name,
        ) from error


def _run_id(run_dir: Path) -> str:
    """The same id each time a folder is resumed; other folders get other ids."""
    return hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]


def _finite(metrics: Mapping[str, Number]) -> dict[str, float | int]:
    return {name: value for name, value in plain_metrics(metrics).items() if value is not None}
