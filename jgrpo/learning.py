"""From the scored completions of a step to its updates: advantages, minibatches, new state."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jgrpo import algo
from jgrpo.assembly import Run
from jgrpo.collect import Collected
from jgrpo.keys import named_key
from jgrpo.learner.batch import mean_logp, minibatches, token_kl, unweighted, with_advantages
from jgrpo.learner.step import Learner
from jgrpo.marks import segments, strata
from jgrpo.memory import drift, remember
from jgrpo.observe import combine_updates
from jgrpo.parallel.rules import replicated
from jgrpo.types import Batch, TrainState


def learn(
    run: Run, state: TrainState, step: int, collected: Collected
) -> tuple[TrainState, Batch, dict[str, float]]:
    """Turns scored completions into advantages and makes the updates of one step.

    Args:
      run: the run.
      state: the state that sampled the completions; donated.
      step: number of the step.
      collected: the completions.

    Returns:
      The new state, all completions with their advantages, and the metrics of the updates.
    """
    cfg, method, learner = run.cfg, run.cfg.method, run.learner
    begin = time.perf_counter()
    batch, extra = _with_logps(run, state, collected)
    side = _side(run, state, batch, collected)
    advantages = algo.advantages(method, _rewards(method, collected), side, state.strategy)
    batch = with_advantages(batch, advantages)
    updates = []
    for epoch in range(cfg.optim.epochs_per_step):
        order = named_key(run.root, step, "minibatches", epoch)
        for part in minibatches(method, batch, cfg.optim.minibatches, order):
            state, metrics = learner.update(state, _uncoupled(method, learner, state, part))
            updates.append(metrics)
    changed = {
        "step": np.int32(step + 1),
        "cursor": np.int32(collected.cursor),
        "strategy": advantages.state,
    }
    if "previous" in state.aux:
        previous = remember(state.aux["previous"], collected.prompt_ids, batch)
        changed["aux"] = {**state.aux, "previous": previous}
    state = dataclasses.replace(state, **jax.device_put(changed, replicated(run.mesh)))
    learned = combine_updates(jax.device_get(updates)) | extra
    learned["time/learner_s"] = time.perf_counter() - begin
    return state, batch, learned


def _with_logps(
    run: Run, state: TrainState, collected: Collected
) -> tuple[Batch, dict[str, float]]:
    """The completions with the log-probs that the method compares, and how well these agree."""
    cfg, learner, needed = run.cfg, run.learner, algo.needs(run.cfg.method)
    batch = unweighted(collected.rollouts, collected.kept[:, None] & collected.valid)
    extra: dict[str, float] = {}
    if collected.reference is not None:
        batch = dataclasses.replace(batch, unit_ratio=collected.reference)
    if cfg.method.source != "reference" and cfg.model.dtype != "float32":
        # In bfloat16 sampler and learner round differently; the ratio is the learner's own.
        batch, extra = _learner_old_logp(learner, state, batch)
    if "behavior_logp" in needed:
        batch = dataclasses.replace(batch, behavior_logp=collected.rollouts.behavior_logp)
    if "segments" in needed:
        mark, tokenizer = cfg.rollout.segment_mark, run.model.tokenizer
        found = segments(tokenizer, collected.rollouts, mark)
        batch = dataclasses.replace(batch, segments=found)
    if state.ref_params is not None:
        ref_logp = jax.device_get(learner.logps(state.ref_params, batch))
        batch = dataclasses.replace(batch, ref_logp=ref_logp)
    return batch, extra


def _learner_old_logp(
    learner: Learner, state: TrainState, batch: Batch
) -> tuple[Batch, dict[str, float]]:
    old_logp = jax.device_get(learner.logps(state.params, batch))
    sampled = np.asarray(batch.mask)
    if batch.unit_ratio is not None:
        sampled = sampled & ~np.asarray(batch.unit_ratio)[..., None]
    gap = np.where(sampled, old_logp - np.asarray(batch.old_logp), 0.0)
    share = 1.0 / max(int(np.sum(sampled)), 1)
    extra = {
        "invariant/logp_gap_max": float(np.abs(gap).max()),
        "kl/behavior": float((np.expm1(gap) - gap).sum() * share),
    }
    return dataclasses.replace(batch, old_logp=old_logp), extra


def _rewards(
    method: algo.Method, collected: Collected
) -> Float[np.ndarray, "P G"] | Float[np.ndarray, "P G K"]:
    """What the method compares: the weighted sum of the rewards, or each of them."""
    if method.source == "reference":
        return np.ones_like(collected.rewards)  # a solution is to be learned, whatever it scores
    if "columns" in algo.needs(method):
        columns = collected.scores.columns.reshape(*collected.rewards.shape, -1)
        return np.nan_to_num(columns, nan=0.0)  # a reward that says nothing adds nothing
    return collected.rewards


def _side(run: Run, state: TrainState, batch: Batch, collected: Collected) -> algo.Side:
    """What the method must know besides the rewards."""
    cfg, ids = run.cfg, collected.prompt_ids
    needed = algo.needs(cfg.method)
    facts: dict[str, Any] = {
        "lengths": lambda: np.asarray(batch.mask).sum(-1),
        "sequence_kl": lambda: token_kl(batch).sum(-1, dtype=np.float32),
        "token_kl": lambda: token_kl(batch),
        "mean_logp": lambda: mean_logp(batch),
        "mask": lambda: np.asarray(batch.mask),
        "tokens": lambda: np.asarray(batch.tokens),
        "prompt_ids": lambda: ids,
        "drift": lambda: drift(
            state.aux["previous"], ids, batch.prompts, run.learner, state.params
        ),
        "reference": lambda: collected.reference,
        "segments": lambda: batch.segments,
        "strata": lambda: strata(collected.texts, cfg.rollout.stratum_mark),
    }
    return algo.Side(
        max_completion_tokens=cfg.rollout.max_completion_tokens,
        valid=collected.valid & collected.kept[:, None],
        **{name: compute() for name, compute in facts.items() if name in needed},
    )


def _uncoupled(method: algo.Method, learner: Learner, state: TrainState, part: Batch) -> Batch:
    """The minibatch, with what couples its completions at these weights put into advantages."""
    if algo.uncoupled(method) == method:
        return part
    rows = lambda x: jnp.asarray(x).reshape(-1, x.shape[-1])  # noqa: E731
    logp = jax.device_get(learner.logps(state.params, part))
    values = algo.coupled_advantages(
        method,
        rows(logp),
        old_logp=rows(part.old_logp),
        mask=rows(part.mask),
        advantages=np.asarray(part.advantages)[..., 0],
        weights=rows(part.weights),
    )
    return dataclasses.replace(part, advantages=np.asarray(values).reshape(part.mask.shape))
