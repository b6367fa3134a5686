"""The files that a run adds to at every step: `metrics.jsonl` and `samples/`.

Equal runs write equal bytes, wall-clock fields aside; what a killed run wrote beyond the state it
is resumed from is dropped.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Float, Int

from jgrpo.files import sync_folder, write_atomically
from jgrpo.metrics import Number, plain_float, plain_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion as it is written to `samples/`.

    Attributes:
      step: the step that drew it.
      prompt_index: number of the prompt in the run's order (`Prompts.uid`).
      group_index: place in its group, from 0.
      prompt_ids: the prompt's token ids, without padding.
      completion_ids: the completion's token ids, without padding, EOS included.
      prompt: the prompt as text.
      completion: the completion as text.
      logp: log-prob (nats) at which the sampler drew each token of the completion.
      rewards: reward by function name, before weighting; None if the function gave none.
      reward: weighted sum of the rewards.
      advantage: advantage of the completion; None if the step trained without it.
      finished: whether the completion ended itself.
      injected: tokens of it that the policy did not draw.
      round: number of the round that drew it, from 1.
      level: which hint, draft or skill (its number in the cache) the prompt held that it was
        sampled under; 0: none.
      context: that prompt, if it is not `prompt`.
      replaced: whether it stands where another had been drawn.
      replayed: whether an earlier step has drawn it, with the log-probs that stand here.
      role: who drew it: a role of the plan, whose reward is what the plan pays; "": the policy.
    """

    step: int
    prompt_index: int
    group_index: int
    prompt_ids: Int[np.ndarray, " Lp"]
    completion_ids: Int[np.ndarray, " T"]
    prompt: str
    completion: str
    logp: Float[np.ndarray, " T"]
    rewards: Mapping[str, float | None]
    reward: float
    advantage: float | None
    finished: bool
    injected: int = 0
    round: int = 1
    level: int = 0
    context: str | None = None
    replaced: bool = False
    replayed: bool = False
    role: str = ""


class StepLog:
    """A file of JSON lines, each with the number of the step it is of; steps rise.

    Floats are written as the shortest decimal that reads back as the same float32, so equal runs
    give equal bytes; a number that is not finite is written as null. What was written is on the
    disk when `write` returns.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is read or written yet."""
        self._path = path
        self._file: TextIO | None = None
        self._last_step = -1

    def resume(self, finished_steps: int) -> list[dict[str, Any]]:
        """Drops what a stopped run wrote beyond the state it is resumed from.

        Must be called before the first `write` if the file may exist. The change is atomic.

        Args:
          finished_steps: number of finished steps of that state; lines of later steps, and a
            last line that was cut off while it was written, are dropped. 0 drops all.

        Returns:
          The lines that stay.

        Raises:
          ValueError: if a line other than the last is not one of ours; names file and line.
        """
        self.close()
        kept: list[dict[str, Any]] = []
        texts = []
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else []
        for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
            row = _parsed(line)
            if row is None:
                raise ValueError(
                    f"{self._path}:{number}: expected a JSON object with an integer 'step', got "
                    f"{line[:60]!r}; repair or remove the line, or choose another run.dir"
                )
            if row["step"] < finished_steps:
                kept.append(row)
                texts.append(line.decode() + "\n")
        if lines:
            write_atomically(self._path, "".join(texts))
        self._last_step = kept[-1]["step"] if kept else -1
        return kept

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends the lines of a step and waits until the disk has them.

        Args:
          step: number of the step, from 0.
          rows: what the lines hold besides the step.

        Raises:
          ValueError: for a step that does not come after the last one written.
          OSError: if the disk is full or the folder read-only; the lines of the steps before are
            intact, and `resume` clears away what part of this one was written.
        """
        if step <= self._last_step:
            raise ValueError(
                f"step {step} comes after step {self._last_step} in {self._path}; steps must rise "
                "(call resume when a run is resumed)"
            )
        if self._file is None:
            if not self._path.exists():
                self._path.touch()
                sync_folder(self._path.parent)
            self._file = self._path.open("a", encoding="utf-8", newline="\n")
        lines = (json.dumps({"step": step, **row}, allow_nan=False) + "\n" for row in rows)
        try:
            self._file.write("".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            message = f"{self._path}: the lines of step {step} were not saved: {error}"
            raise OSError(message) from error
        self._last_step = step

    def close(self) -> None:
        """Closes the file; a later `write` opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # what could not be flushed has been reported
                file.close()


class MetricsFile(StepLog):
    """`metrics.jsonl` of a run: one JSON object a step, `step` first, then the metrics sorted."""

    def __init__(self, run_dir: Path) -> None:
        """Nothing is read or written yet."""
        super().__init__(run_dir / "metrics.jsonl")

    def add(self, step: int, metrics: Mapping[str, Number]) -> dict[str, Any]:
        """Appends the line of a step, as `write` does.

        Args:
          step: number of the step, from 0.
          metrics: scalars by name; every name must have a row in `METRICS`.

        Returns:
          The metrics as they were written.

        Raises:
          ValueError: for a name without a row, or a value that is not a scalar.
        """
        row = plain_metrics(metrics)
        self.write(step, [row])
        return row


class SamplesWriter:
    """`samples/step_000012.jsonl` of a run: one object a completion, one file a step.

    A file is whole or absent. Floats are written as in `MetricsFile`.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "samples"

    def write(self, step: int, samples: Sequence[Sample]) -> Path:
        """Writes the samples of a step, in place of those that a stopped run may have left.

        Args:
          step: number of the step, from 0.
          samples: one record a completion, in the order to be written.

        Returns:
          The file written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step_{step:06d}.jsonl"
        rows = (json.dumps(_plain_sample(sample), ensure_ascii=False) for sample in samples)
        write_atomically(path, "".join(row + "\n" for row in rows))
        return path


def _plain_sample(sample: Sample) -> dict[str, Any]:
    row = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    return row | {
        "prompt_ids": sample.prompt_ids.tolist(),
        "completion_ids": sample.completion_ids.tolist(),
        "logp": [plain_float(value) for value in sample.logp.tolist()],
        "rewards": {name: plain_float(value) for name, value in sample.rewards.items()},
        "reward": plain_float(sample.reward),
        "advantage": plain_float(sample.advantage),
    }


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_ours = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if is_ours else None
