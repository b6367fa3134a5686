"""Values chosen by optuna: a study that lies in the folder of the sweep and can be continued.

Optuna is imported here and nowhere else. A trial is one setting, its value the mean of the
sweep's metric over the seeds.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jgrpo.data.draws import content_hash
from jgrpo.sweep.file import Distribution, Sweep

if TYPE_CHECKING:
    import optuna

_RETRY = "retry_of"
"""Marks a trial that repeats one which was cut off, so that the two count once."""


def study_file(sweep: Sweep) -> Path:
    """Where the study of a sweep lies."""
    return Path(sweep.dir) / "study.db"


class Study:
    """A study of optuna (its TPE sampler), in a file.

    Trials that were cut off with their process are asked again with the same values, which lead
    to the same folders, so that their runs continue.
    """

    def __init__(self, sweep: Sweep) -> None:
        """Opens the study, or makes it.

        Raises:
          ImportError: if optuna is not installed.
          ValueError: if the study was made with another direction.
        """
        try:
            import optuna
        except ImportError as error:
            message = "a sweep with `optuna` needs optuna: pip install 'jgrpo[sweep]'"
            raise ImportError(message) from error
        assert sweep.study is not None
        self._optuna, self._draws = optuna, sweep.study
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = study_file(sweep)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._study = optuna.create_study(
            study_name="sweep",
            storage=f"sqlite:///{path}",
            direction=sweep.direction,
            load_if_exists=True,
        )
        if self._study.direction.name.lower() != sweep.direction:
            raise ValueError(
                f"{path} holds a study that is to {self._study.direction.name.lower()}, but the "
                f"sweep says {sweep.direction}; set `dir` to another folder"
            )

    @property
    def finished(self) -> int:
        """Trials that have a value or have failed; those that were cut off count once."""
        states = self._optuna.trial.TrialState
        trials = self._study.get_trials(deepcopy=False)
        ended = sum(trial.state in (states.COMPLETE, states.FAIL) for trial in trials)
        return ended - sum(_RETRY in trial.user_attrs for trial in trials)

    def ask(self) -> tuple["optuna.Trial", dict[str, Any]]:
        """Returns the next trial and its settings."""
        states = self._optuna.trial.TrialState
        for old in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            self._study.enqueue_trial(old.params, user_attrs={_RETRY: old.number})
            self._study.tell(old.number, state=states.FAIL)
        # A sampler keeps its random numbers in memory; named by the trial, a restart goes on.
        noise = content_hash(f"sweep/{self._draws.seed}/{self.finished}") % 2**32
        self._study.sampler = self._optuna.samplers.TPESampler(seed=noise)
        trial = self._study.ask()
        return trial, {key: _suggest(trial, key, how) for key, how in self._draws.keys.items()}

    def tell(self, trial: "optuna.Trial", values: Sequence[float | None]) -> None:
        """Ends a trial with the metric of its runs; it has failed if one of them has none."""
        found = [value for value in values if value is not None]
        if len(found) == len(values):
            self._study.tell(trial, statistics.fmean(found))
        else:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    def tried(self) -> list[dict[str, Any]]:
        """The settings of all trials that have begun, in order."""
        keys = self._draws.keys
        trials = self._study.get_trials(deepcopy=False)
        return [_settings(keys, t.params) for t in trials if t.params.keys() == keys.keys()]


def _suggest(trial: "optuna.Trial", key: str, how: Distribution) -> Any:
    if how.kind == "choice":
        # By number: optuna takes no lists or mappings as choices.
        return how.values[trial.suggest_categorical(key, list(range(len(how.values))))]
    low, high = how.values
    if how.kind == "int":
        return trial.suggest_int(key, low, high)
    return how.rounded(trial.suggest_float(key, low, high, log=how.kind == "log_uniform"))


def _settings(keys: Mapping[str, Distribution], params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the parameters of a trial stand for."""
    return {
        key: how.values[params[key]]
        if how.kind == "choice"
        else params[key]
        if how.kind == "int"
        else how.rounded(params[key])
        for key, how in keys.items()
    }
