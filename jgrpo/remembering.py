"""What a state remembers of a step that is over: trackers, stores, guidance, the reference.

Letters: P prompts of a step, G completions per prompt.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

from jgrpo import algo
from jgrpo.collected import Collected
from jgrpo.config import Config
from jgrpo.learner.step import Learner
from jgrpo.memory import remember
from jgrpo.parallel.hosts import place
from jgrpo.parallel.rules import replicated
from jgrpo.strategy import guidance, replay, skills
from jgrpo.types import Batch, TrainState


def stepped(
    cfg: Config,
    learner: Learner,
    state: TrainState,
    step: int,
    collected: Collected,
    batch: Batch,
    tracked: PyTree,
    further: Mapping[str, PyTree],
) -> TrainState:
    """The state with one step more, and with what is to be remembered of it.

    Args:
      cfg: the run's config.
      learner: for the mesh.
      state: after the updates of the step.
      step: its number.
      collected: its completions.
      batch: the same with their log-probs.
      tracked: the tracker's state after it.
      further: the states of the other slots after it, by name.
    """
    changed = {
        "step": np.int32(step + 1),
        "cursor": np.int32(collected.cursor),
        "strategy": _slots(cfg, state, step, collected, batch, tracked) | dict(further),
    }
    memory = {}
    if "previous" in state.aux:
        memory["previous"] = remember(state.aux["previous"], collected.prompt_ids, batch)
    changed, memory = place((changed, memory), replicated(learner.mesh))
    return dataclasses.replace(state, **changed, aux=state.aux | memory)


def _slots(
    cfg: Config,
    state: TrainState,
    step: int,
    collected: Collected,
    batch: Batch,
    tracked: PyTree,
) -> PyTree:
    """The state of the method's slots after a step."""
    memory, method = dict(state.strategy), cfg.method
    if "tracker" in memory:
        memory["tracker"] = tracked
    if "guidance" in memory:
        correct, there = int(collected.correct.sum()), int(collected.present.sum())
        before, steps = jax.device_get(memory["guidance"]), cfg.run.steps
        memory["guidance"] = guidance.observed(method, before, correct, there, step + 1, steps)
    if "skills" in memory:
        memory["skills"] = skills.observed(
            method,
            jax.device_get(memory["skills"]),
            collected.rollouts,
            collected.rewards,
            collected.valid,
            step,
            collected.skill,
        )
    if "replay" in memory:
        memory["replay"] = replay.observed(
            method,
            jax.device_get(memory["replay"]),
            collected.prompt_ids,
            collected.rollouts,
            batch.old_logp,
            collected.rewards >= method.max_value,
            collected.valid,
        )
    return memory


def followed(cfg: Config, learner: Learner, state: TrainState, step: int) -> TrainState:
    """The state with a reference that has moved towards the policy, if it is to in this step."""
    method = cfg.method
    if "moving_reference" not in algo.needs(method) or (step + 1) % method.ref_every_steps:
        return state
    moved = learner.follow(state.ref_params, state.params, method.ref_decay)
    return dataclasses.replace(state, ref_params=moved)
