"""The temperature of a step, and the memory of it: how many stages it has been raised by."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import PyTree

from jgrpo.algo.controlling import diversity, next_stage, temperatures
from jgrpo.config import Config


def fresh() -> PyTree:
    """The state before the first step: the stage of the temperature."""
    return np.zeros((), np.int32)


def of_step(cfg: Config, strategy: Mapping[str, PyTree]) -> Config:
    """The run's config with the sampling temperature of the coming step.

    Args:
      cfg: the run's config.
      strategy: the states of the method's slots.
    """
    if "control" not in strategy:
        return cfg
    stages = temperatures(cfg.method, cfg.rollout.temperature)
    rollout = dataclasses.replace(cfg.rollout, temperature=stages[int(strategy["control"])])
    return dataclasses.replace(cfg, rollout=rollout)


def controlled(
    cfg: Config, strategy: Mapping[str, PyTree], completions: Sequence[Sequence[int]], step: int
) -> tuple[dict[str, PyTree], dict[str, float]]:
    """The state of the slot after a step, and its metrics; both empty without one.

    Args:
      cfg: the run's config.
      strategy: the states of the method's slots.
      completions: token ids of the step's completions, prompt by prompt.
      step: number of the step, from 1.
    """
    if "control" not in strategy:
        return {}, {}
    stage, start = int(strategy["control"]), cfg.rollout.temperature
    measured = diversity(completions, cfg.group_places, cfg.method.diversity_gram)
    after = next_stage(cfg.method, stage, measured, step, start)
    temperature = of_step(cfg, strategy).rollout.temperature
    told = {"sampling/temperature": temperature, "sampling/diversity": measured}
    return {"control": np.int32(after)}, told
