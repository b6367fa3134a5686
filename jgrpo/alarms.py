"""Named warnings about a run that goes wrong while every number is still finite.

Each alarm compares the last ten steps with the first ten, or with the best ten in a row. It fires
once. What it has seen is a function of the metrics file, so a resumed run goes on where it was.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

_WINDOW = 10
_NAMES = (
    "reward/mean",
    "reward/std",
    "reward/zero_variance_fraction",
    "completion/length_mean",
    "completion/clipped_fraction",
    "completion/repetition",
    "entropy/mean",
    "grad/norm",
    "optim/skipped_updates",
)

Means: TypeAlias = Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """Means over ten steps each.

    Attributes:
      first: of the first ten steps.
      last: of the last ten.
      best: of the ten steps in a row whose mean reward was highest.
    """

    first: Means
    last: Means
    best: Means


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alarm:
    """One way in which a run goes wrong.

    Attributes:
      fires: whether the history shows it.
      says: what is wrong and what to look at; may name metrics, filled in from the last ten steps.
    """

    fires: Callable[[History], bool]
    says: str


class Alarms:
    """The alarms of a run and what they have seen."""

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._rows: deque[Means] = deque(maxlen=_WINDOW)
        self._first: Means | None = None
        self._best: Means | None = None
        self._fired: set[str] = set()

    def see(self, metrics: Mapping[str, Any]) -> list[str]:
        """Takes in the metrics of the next step.

        Args:
          metrics: by name; a number that is not finite may be None.

        Returns:
          The warnings that are new, each with its name in front.
        """
        # A mean with a nan in it is nan, and no comparison with nan fires.
        values = {name: metrics.get(name) for name in _NAMES}
        row = {name: math.nan if value is None else value for name, value in values.items()}
        self._rows.append(row)
        if len(self._rows) < _WINDOW:
            return []
        last = {name: sum(row[name] for row in self._rows) / _WINDOW for name in _NAMES}
        self._first = self._first or last
        if self._best is None or last["reward/mean"] > self._best["reward/mean"]:
            self._best = last
        history = History(first=self._first, last=last, best=self._best)
        new = [
            name
            for name, alarm in ALARMS.items()
            if name not in self._fired and alarm.fires(history)
        ]
        self._fired.update(new)
        return [f"ALARM {name}: {ALARMS[name].says.format_map(last)}" for name in new]


def _reward_collapse(history: History) -> bool:
    best, last = history.best["reward/mean"], history.last["reward/mean"]
    return best - last > max(0.5 * abs(best), 0.05)


def _length_collapse(history: History) -> bool:
    first, last = (h["completion/length_mean"] for h in (history.first, history.last))
    worse = history.last["reward/mean"] < history.first["reward/mean"]
    return last < 0.25 * first and worse


def _length_explosion(history: History) -> bool:
    first, last = (h["completion/clipped_fraction"] for h in (history.first, history.last))
    return last > 0.8 and first < 0.5


def _entropy_collapse(history: History) -> bool:
    first, last = (h["entropy/mean"] for h in (history.first, history.last))
    return last < 0.05 * first and _unsolved(history)


def _zero_variance(history: History) -> bool:
    return history.last["reward/zero_variance_fraction"] > 0.9 and _unsolved(history)


def _unsolved(history: History) -> bool:
    """Whether some prompts still earn less than others: there is something left to learn."""
    return history.last["reward/std"] > 0.3 * max(abs(history.last["reward/mean"]), 0.1)


def _repetition(history: History) -> bool:
    first, last = (h["completion/repetition"] for h in (history.first, history.last))
    return last > 0.5 and first < 0.25


def _no_gradient(history: History) -> bool:
    return history.last["grad/norm"] == 0.0


def _skipped_updates(history: History) -> bool:
    return history.last["optim/skipped_updates"] > 0.0


ALARMS: Mapping[str, Alarm] = {
    "reward_collapse": Alarm(
        fires=_reward_collapse,
        says=(
            "the mean reward of the last ten steps is {reward/mean:.3g}, less than half of its "
            "best. Look at samples/, grad/norm and ratio/clip_fraction; a lower optim.lr or a KL "
            "penalty (method.kl_coef) holds the policy nearer to where it was good."
        ),
    ),
    "length_collapse": Alarm(
        fires=_length_collapse,
        says=(
            "completions have shrunk to {completion/length_mean:.3g} tokens and earn less. Look at "
            "samples/ and at rewards that favour short answers; method.weights decides how tokens "
            "of long completions count."
        ),
    ),
    "length_explosion": Alarm(
        fires=_length_explosion,
        says=(
            "{completion/clipped_fraction:.0%} of the completions run into "
            "rollout.max_completion_tokens. Look at samples/: either they need more room, or they "
            "have forgotten to stop (overlong shaping, as in dapo, penalises that)."
        ),
    ),
    "entropy_collapse": Alarm(
        fires=_entropy_collapse,
        says=(
            "the entropy has fallen to {entropy/mean:.3g} nats while rewards still differ: the "
            "policy no longer explores. Go back to an earlier checkpoint with a lower optim.lr, a "
            "higher method.clip_high, or a larger rollout.group_size."
        ),
    ),
    "zero_variance_groups": Alarm(
        fires=_zero_variance,
        says=(
            "{reward/zero_variance_fraction:.0%} of the groups have equal rewards, so almost "
            "nothing is learned from them. Choose prompts of middling difficulty, a larger "
            "rollout.group_size, or dynamic sampling (method=dapo)."
        ),
    ),
    "repetition": Alarm(
        fires=_repetition,
        says=(
            "{completion/repetition:.0%} of what a completion says it has said before. Look at "
            "samples/; a reward that can be earned by repeating, or a rate too high, does this."
        ),
    ),
    "no_gradient": Alarm(
        fires=_no_gradient,
        says=(
            "ten steps in a row had no gradient at all: every group had equal rewards. Look at "
            "samples/ and at the reward functions; docs/reward_is_flat.md lists the usual causes."
        ),
    ),
    "skipped_updates": Alarm(
        fires=_skipped_updates,
        says=(
            "an update was not finite and has been skipped. Look at reward/mean and "
            "ratio/deviation_max of that step; divergence.max_skipped_in_row says how many the run "
            "bears."
        ),
    ),
}
"""Every alarm by name."""
