"""All that a run writes of its steps, and what it concludes from it.

Everything concluded (alarms, scores, skipped updates in a row) is a function of the lines in
`metrics.jsonl`, so a resumed run concludes what one left alone does. Of several processes the
first writes; the others conclude the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jgrpo.alarms import Alarms
from jgrpo.config import Config
from jgrpo.loggers import open_sinks
from jgrpo.metrics import Number, plain_metrics
from jgrpo.parallel import hosts
from jgrpo.quarantine import Quarantine
from jgrpo.rewards.score import Scores
from jgrpo.run_files import MetricsFile, Sample, SamplesWriter


class Recorder:
    """The record of a run.

    Attributes:
      scores: `checkpoint.best_metric` by the number of finished steps, where it was evaluated.
      skipped_in_row: how many of the last steps in a row have skipped an update.
    """

    def __init__(self, folder: Path, cfg: Config, finished_steps: int) -> None:
        """Opens the record of a run that goes on after some finished steps."""
        self.scores: dict[int, float] = {}
        self.skipped_in_row = 0
        self._log = cfg.log
        self._best_metric = cfg.checkpoint.best_metric
        self._alarms = Alarms()
        self._metrics = MetricsFile(folder)
        self._samples = SamplesWriter(folder)
        self._quarantine = Quarantine(folder, cfg.reward.max_failure_rate)
        self.resume(finished_steps)
        self._sinks = []
        if hosts.is_first():
            self._sinks = open_sinks(cfg.log, folder, dataclasses.asdict(cfg), finished_steps)

    def resume(self, finished_steps: int) -> None:
        """Forgets what was recorded of steps that will be made again."""
        self.scores.clear()
        self.skipped_in_row = 0
        self._alarms = Alarms()
        self._quarantine.resume(finished_steps)
        hosts.on_first(lambda: self._read(finished_steps))
        self.skipped_in_row = hosts.from_first(lambda: self.skipped_in_row)

    def _read(self, finished_steps: int) -> None:
        for row in self._metrics.resume(finished_steps):
            self._conclude(row["step"], row)

    def shows(self, step: int) -> bool:
        """Whether the samples of a step are written."""
        return self._log.samples_every > 0 and step % self._log.samples_every == 0

    def failures(self, step: int, scores: Scores) -> list[str]:
        """Writes down what reward functions failed on; returns and raises as `Quarantine.add`."""
        return self._quarantine.add(step, scores)

    def add(self, step: int, metrics: Mapping[str, Number], samples: Sequence[Sample]) -> list[str]:
        """Writes what a step has shown.

        Args:
          step: number of the step.
          metrics: its metrics.
          samples: its completions; empty where `shows` says no.

        Returns:
          Warnings that the step has given rise to.

        Raises:
          OSError: if the disk is full; the steps before are intact.
        """
        if not hosts.is_first():
            return self._conclude(step, plain_metrics(metrics))
        if samples:
            self._samples.write(step, samples)
        row = self._metrics.add(step, metrics)
        for sink in self._sinks:
            sink.write(step, metrics)
        return self._conclude(step, row)

    def close(self) -> None:
        """Closes every file and tracker."""
        self._metrics.close()
        self._quarantine.close()
        for sink in self._sinks:
            sink.close()

    def _conclude(self, step: int, row: Mapping[str, Any]) -> list[str]:
        if row.get(self._best_metric) is not None:
            self.scores[step + 1] = row[self._best_metric]
        self.skipped_in_row = self.skipped_in_row + 1 if row["optim/skipped_updates"] else 0
        return self._alarms.see(row)
