"""CONTROL: the sampling temperature from step to step.

Letters: P prompts, G completions per prompt, T token positions. A schedule is an integer rule over
stages of temperature; it runs on the host.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.row import Method

# (m, stage, diversity of the step's completions, number of the step from 1) -> stage of the next
Control: TypeAlias = Callable[[Method, int, float, int], int]


def temperatures(m: Method, start: float) -> tuple[float, ...]:
    """The stages of temperature: the run's own, then those of `temperature_stages` above it.

    Args:
      m: the method.
      start: `rollout.temperature`.

    Example:
      >>> from jgrpo.algo import METHODS
      >>> temperatures(METHODS["microcoder_grpo"], 1.0)
      (1.0, 1.2)
    """
    return (start, *sorted({t for t in m.temperature_stages if t > start}))


def next_stage(m: Method, stage: int, diversity: float, step: int, start: float) -> int:
    """Number, from 0, of the stage of temperature that the next step samples at.

    Args:
      m: the method.
      stage: of this step.
      diversity: of its completions, from `diversity`.
      step: its number, from 1.
      start: `rollout.temperature`.

    Example:
      >>> from jgrpo.algo import method
      >>> m = method("microcoder_grpo", diversity_target=0.5)
      >>> [next_stage(m, 0, d, step, 0.8) for d, step in [(0.4, 49), (0.4, 50), (0.6, 50)]]
      [0, 1, 0]
    """
    wanted = chosen(CONTROLS, m.control).function(m, stage, diversity, step)
    return max(0, min(wanted, len(temperatures(m, start)) - 1))


def diversity(completions: Sequence[Sequence[int]], size: int, gram: int) -> float:
    """Share of the n-grams of a prompt's completions that differ, mean over prompts.

    Args:
      completions: token ids, prompt by prompt; empty where none stands.
      size: places of a group.
      gram: n.

    Returns:
      A number in (0, 1]; 1 for completions that are all shorter than n.

    Example:
      >>> diversity([[1, 2, 3], [1, 2, 4], [5, 6], [5, 6]], size=2, gram=2)
      0.625
    """
    shares = []
    for first in range(0, len(completions), size):
        group = completions[first : first + size]
        grams = [tuple(c[i : i + gram]) for c in group for i in range(len(c) - gram + 1)]
        shares.append(len(set(grams)) / len(grams) if grams else 1.0)
    return float(np.mean(shares))


def constant(m: Method, stage: int, diversity: float, step: int) -> int:
    """The temperature stays."""
    return stage


def raised(m: Method, stage: int, diversity: float, step: int) -> int:
    """One stage up after every so many steps, if completions are less diverse than they should be.

    It never goes down.

    References:
      MicroCoder-GRPO, arXiv:2603.07777. Departs: the paper has no closed rule (low to high, in
      stages, by the diversity of the output); measure, interval, target and stages are assumed.
    """
    due = step % m.temperature_every_steps == 0
    return stage + (due and diversity < m.diversity_target)


CONTROLS: Mapping[str, Choice[Control]] = {
    "constant": Choice(function=constant, formula="rollout.temperature at every step"),
    "diversity": Choice(
        function=raised,
        formula="after every temperature_every_steps steps: if the share of different n-grams among"
        " a prompt's completions (n = diversity_gram, mean over prompts) is below diversity_target,"
        " the temperature rises to the next of temperature_stages; from rollout.temperature on,"
        " never down",
        constants=(
            *("temperature_stages", "temperature_every_steps"),
            *("diversity_target", "diversity_gram"),
        ),
        needs=("control",),
        watch=("sampling/temperature", "sampling/diversity"),
        pitfalls=(
            "Old log-probs are at the temperature of their step: entropies and KL of two stages "
            "do not compare.",
        ),
    ),
}
