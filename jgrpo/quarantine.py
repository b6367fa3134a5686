"""What reward functions failed on: kept in `quarantine.jsonl`, and a reason to stop when too much.

One line per failed call: what happened, and the prompt, completion and columns it happened with,
cut to bounded size, so that it can be tried again by hand. The failures themselves are counted in
`metrics.jsonl`.
"""

import json
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jgrpo.parallel import hosts
from jgrpo.rewards.calls import RewardError
from jgrpo.rewards.score import Scores
from jgrpo.rewards.scoring import Failure
from jgrpo.run_files import StepLog

WINDOW = 200
"""Completions over which the rate of failures is taken."""
MIN_COMPLETIONS = 20
"""Completions before which it is not."""

_MAX_TEXT = 8000
_MAX_COLUMN = 1000
_MAX_COLUMNS = 30


class Quarantine:
    """The failures of a run."""

    def __init__(self, run_dir: Path, max_failure_rate: float) -> None:
        """Nothing is read or written yet.

        Args:
          run_dir: the run folder.
          max_failure_rate: share of failures of one reward among its last `WINDOW` completions
            above which the run stops.
        """
        self._path = run_dir / "quarantine.jsonl"
        self._log = StepLog(self._path)
        self._max_rate = max_failure_rate
        self._recent: dict[str, deque[bool]] = {}
        self._said: set[tuple[str, str]] = set()

    def resume(self, finished_steps: int) -> None:
        """Drops the failures of steps that will be made again; the rates begin anew."""
        self._recent.clear()
        self._said.clear()
        hosts.on_first(lambda: self._log.resume(finished_steps))

    def add(self, step: int, scores: Scores) -> list[str]:
        """Writes the failures of a step.

        Args:
          step: number of the step.
          scores: its scores.

        Returns:
          What is new about the failures, in words: each function and kind of failure once a run.

        Raises:
          RewardError: if a reward fails too often; names it, the rate and the file.
          OSError: if the file cannot be written; names the file and the step.
        """
        if scores.failures and hosts.is_first():
            self._log.write(step, [_row(failure) for failure in scores.failures])
        for name, failed in scores.failed.items():
            recent = self._recent.setdefault(name, deque(maxlen=WINDOW))
            recent.extend(failed.tolist())
            rate = sum(recent) / max(len(recent), 1)
            if len(recent) >= MIN_COMPLETIONS and rate > self._max_rate:
                kinds = _kinds(scores.failures, name)
                raise RewardError(
                    f"step {step}: reward {name!r} failed on {rate:.0%} of the last {len(recent)} "
                    f"completions ({kinds}), more than reward.max_failure_rate = "
                    f"{self._max_rate:g}; what it failed on is in {self._path}"
                )
        return self._news(step, scores.failures)

    def close(self) -> None:
        """Closes the file."""
        self._log.close()

    def _news(self, step: int, failures: tuple[Failure, ...]) -> list[str]:
        news = []
        for failure in failures:
            key = (failure.function, failure.kind)
            if key not in self._said:
                self._said.add(key)
                news.append(
                    f"step {step}: reward {failure.function!r} failed ({failure.kind}: "
                    f"{failure.detail[:200]}); such failures are kept in {self._path}"
                )
        return news


def _kinds(failures: tuple[Failure, ...], name: str) -> str:
    counts = Counter(f.kind for f in failures if f.function == name)
    details = [f.detail[:200] for f in failures if f.function == name]
    text = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return f"in this step {text}; the last: {details[-1]}" if details else "none in this step"


def _row(failure: Failure) -> Mapping[str, Any]:
    columns = list(failure.columns.items())[:_MAX_COLUMNS]
    return {
        "function": failure.function,
        "kind": failure.kind,
        "detail": _cut(failure.detail),
        "completions": failure.completions,
        "prompt": _short(failure.prompt, _MAX_TEXT),
        "completion": _cut(failure.completion),
        "columns": {name[:_MAX_COLUMN]: _short(value, _MAX_COLUMN) for name, value in columns},
    }


def _cut(text: str) -> str:
    """The text, valid as UTF-8, cut to bounded size."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text)} characters)"


def _short(value: Any, limit: int) -> Any:
    """A JSON value as it is if it is short; else, or if it is none, its text cut to the limit."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
        value = text
    text = text.encode("utf-8", "replace").decode()
    return value if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
