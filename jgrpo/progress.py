"""What a person sees of a run: a live line on a terminal, a few plain lines in a log, a table.

The values on the line are the metrics that have a label in `METRICS`.
"""

import collections
import statistics
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.progress
from rich.console import Console
from rich.table import Table

from jgrpo.evaluate import EvalReport, Interval
from jgrpo.metrics import METRICS, Number

_LOG_LINES = 20
_RECENT_STEPS = 20


class Progress:
    """The progress of a run, as a context manager.

    On a terminal one line is drawn again after each step. Elsewhere about twenty lines are
    printed over the run: the first step, the last, and every so many between. Both go to stderr.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        console: Console | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        """Nothing is shown yet.

        Args:
          total_steps: steps of the run.
          start_step: steps finished before this process began.
          console: where to show it; None: stderr.
          quiet: show nothing.
        """
        self._total = total_steps
        self._start = start_step
        self._console = console or Console(stderr=True, quiet=quiet)
        self._every = max(1, total_steps // _LOG_LINES)
        self._recent_s: collections.deque[float] = collections.deque(maxlen=_RECENT_STEPS)
        self._live = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._live.add_task("compiling", total=total_steps, completed=start_step)

    def __enter__(self) -> "Progress":
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Shows that a step has finished.

        Args:
          step: number of the step, from 0.
          metrics: its metrics; the time left follows from `time/step_s` of recent steps.
        """
        if "time/step_s" in metrics:
            self._recent_s.append(float(metrics["time/step_s"]))
        done = step + 1
        parts = [
            f"{row.label} {_compact(float(metrics[name]))}"
            for name, row in METRICS.items()
            if row.label and name in metrics
        ]
        if self._recent_s:
            # The median: a step that compiles takes many times the usual.
            left_s = statistics.median(self._recent_s) * (self._total - done)
            parts.append(f"ETA {_duration(left_s)}")
        text = "  ".join(parts)
        self._live.update(self._task, completed=done, description=text)
        edge = step == self._start or done == self._total
        if not self._console.is_terminal and (edge or done % self._every == 0):
            self._plain(f"step {done}/{self._total}  {text}")

    def say(self, text: str) -> None:
        """Prints a line that stays: a resume, an evaluation, a warning."""
        self._plain(text)

    def _plain(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def before_after_table(before: EvalReport, after: EvalReport) -> Table:
    """The held-out evaluation before and after a run, side by side.

    Args:
      before: report before the first step.
      after: report after the last step.

    Returns:
      A table to print with rich: fractions in percent, 95 % intervals in brackets.
    """
    table = Table(title=f"{after.num_prompts} held-out prompts", title_justify="left")
    table.add_column("")
    for header in ("before", "after", "change"):
        table.add_column(header, justify="right", no_wrap=True)

    def add(name: str, old: float, new: float, spans: tuple[Interval, Interval] | None) -> None:
        old_text, new_text = _percent(old), _percent(new)
        if spans is not None:
            old_text, new_text = f"{old_text} {_span(spans[0])}", f"{new_text} {_span(spans[1])}"
        table.add_row(name, old_text, new_text, f"{100 * (new - old):+.1f} points")

    spans = before.greedy_interval, after.greedy_interval
    add("greedy accuracy", before.greedy_accuracy, after.greedy_accuracy, spans)
    for k in sorted(before.pass_at.keys() & after.pass_at.keys()):
        spans = before.pass_at_interval[k], after.pass_at_interval[k]
        add(f"pass@{k}", before.pass_at[k], after.pass_at[k], spans)
    for k in sorted(before.maj_at.keys() & after.maj_at.keys()):
        spans = before.maj_at_interval[k], after.maj_at_interval[k]
        add(f"maj@{k}", before.maj_at[k], after.maj_at[k], spans)
    if before.format_rate is not None and after.format_rate is not None:
        add("in the format", before.format_rate, after.format_rate, None)
    add("finished", before.finished_rate, after.finished_rate, None)
    table.add_row(
        "mean length",
        f"{before.length_mean:.1f} tokens",
        f"{after.length_mean:.1f} tokens",
        f"{after.length_mean - before.length_mean:+.1f} tokens",
    )
    return table


def show_result(summary: Mapping[str, Any], folder: Path, config: str) -> None:
    """Prints what a finished run has come to, and what can be done next.

    Args:
      summary: of the run.
      folder: the run folder.
      config: the file it was started with.
    """
    before, after = (EvalReport.from_json(summary[name]) for name in ("eval_before", "eval_after"))
    console = Console()
    console.print(before_after_table(before, after))
    lines = [
        f"The run lies in {folder}: metrics.jsonl, samples/, checkpoints/, summary.json.",
        "Next:",
        f"  .venv/bin/jgrpo generate {folder} -n 4 -g 2 --temperature 1",
        f"  .venv/bin/jgrpo export {folder} --to {folder}/exported",
        f"  .venv/bin/python train.py {config} method=gspo run.dir={folder}_gspo",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _span(interval: Interval) -> str:
    return f"[dim]({100 * interval[0]:.0f}-{100 * interval[1]:.0f})[/dim]"


def _compact(value: float) -> str:
    """Four digits or so, whatever the size, in a width that does not jump."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
