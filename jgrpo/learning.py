"""From the scored completions of a step to its updates: advantages, minibatches, new state."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, PyTree

from jgrpo import algo
from jgrpo.ahead import sampling_params
from jgrpo.algo.preference import steps
from jgrpo.assembly import Run
from jgrpo.buckets import bucket
from jgrpo.collected import Collected
from jgrpo.config import Config
from jgrpo.imitating import beside, collected_experts, due
from jgrpo.keys import named_key
from jgrpo.learner.batch import (
    answer_logp,
    explained_variance,
    mean_logp,
    minibatches,
    token_kl,
    unweighted,
    with_advantages,
    with_entropy_mask,
    with_injected,
    with_standing,
)
from jgrpo.learner.forward import TokenFacts
from jgrpo.learner.routing import blank_routes, with_routes
from jgrpo.learner.step import Learner
from jgrpo.marks import in_form, segments, strata
from jgrpo.memory import drift
from jgrpo.models.load import architecture
from jgrpo.observe import combine_updates
from jgrpo.parallel.hosts import at_hand, fetch
from jgrpo.parallel.lowered import Compile, compile_now
from jgrpo.places import Rows, logps_in_rows, rows_of
from jgrpo.preferring import compared, scores_of, together
from jgrpo.remembering import followed, stepped
from jgrpo.roles import taught
from jgrpo.strategy.control import controlled
from jgrpo.strategy.replay import store_metrics
from jgrpo.strategy.sampler import chances, draw_metrics, refilled, spared
from jgrpo.strategy.skills import library_metrics, used
from jgrpo.types import Batch, Prompts, Rollouts, TrainState


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
    begin, run = time.perf_counter(), run.at(state.strategy)
    cfg, method, learner = run.cfg, run.cfg.method, run.learner
    state = dataclasses.replace(state, strategy=at_hand(state.strategy))
    batch, facts, extra = _with_logps(run, state, collected)
    side = _side(run, state, batch, collected)
    tracked = state.strategy.get("tracker")
    advantages = algo.advantages(method, _rewards(method, collected), side, tracked)
    batch, imitated = _weighed(method, batch, advantages, collected.rollouts)
    if facts is not None and facts.entropy is not None and "entropy_mask" in algo.needs(method):
        batch = with_entropy_mask(method, batch, facts.entropy)
    key = named_key(run.root, step, "refill")
    counted = collected.valid & collected.kept[:, None]
    trained, refills = refilled(method, batch, collected.rewards, counted, key)
    extra |= refills | draw_metrics(method, state.strategy, collected.prompt_ids)
    extra |= spared(method, counted, advantages.keep) | dict(collected.told)
    updates, preferences = [], list[dict[str, float | int]]()
    experts = due(cfg, run.model, run.collector.task.train, state.strategy)
    kept, waits = collected_experts(cfg, run.model, collected, state.strategy, len(experts))
    for epoch in range(cfg.optim.epochs_per_step):
        order = named_key(run.root, step, "minibatches", epoch)
        parts = minibatches(
            method, trained, cfg.optim.minibatches, order, collected.present, imitated
        )
        for part in parts:
            part = _uncoupled(run, state, part)
            if "preference" in algo.needs(method):
                part, told = compared(learner, state, part)
                preferences.append(told)
            part, experts = beside(part, experts, method.expert_coef), []
            state, metrics = learner.update(state, _even(cfg, part)[0])
            updates.append(metrics)
    control, measured = controlled(cfg, state.strategy, collected.completion_ids, step + 1)
    state = stepped(cfg, learner, state, step, collected, batch, advantages.state, control | kept)
    state = followed(cfg, learner, state, step)
    extra |= _kept(state.strategy, collected.rollouts)
    learned = combine_updates(jax.device_get(updates)) | extra | measured | waits
    key = named_key(run.root, step, "roles")
    state, learned = taught(cfg, run.roles, key, state, collected.roles, learned)
    if preferences:
        learned |= together(preferences)
    if side.prefix_scores is not None:
        learned |= _steps(side)
    if batch.returns is not None:
        learned["value/explained_variance"] = explained_variance(batch)
    learned["time/learner_s"] = time.perf_counter() - begin
    return state, batch, learned


def _kept(strategy: Mapping[str, PyTree], rollouts: Rollouts) -> dict[str, float]:
    """Metrics of what is kept from step to step, after this one."""
    found = dict[str, float]()
    if "replay" in strategy:
        found |= store_metrics(strategy["replay"], rollouts)
    if "skills" in strategy:
        found |= library_metrics(strategy["skills"], rollouts)
    return found


def _weighed(
    method: algo.Method, batch: Batch, advantages: algo.Advantages, rollouts: Rollouts
) -> tuple[Batch, Bool[np.ndarray, "P G"] | None]:
    """The batch with advantages and with what a plan says of their weight.

    Also True at completions that are trained by their likelihood, which have no advantage; None
    where there can be none.
    """
    standing, imitated = rollouts.standing, None
    if standing is not None:
        imitated = np.asarray(standing.likelihood) > 0
        advantages = dataclasses.replace(advantages, keep=jnp.asarray(advantages.keep) | imitated)
    batch = with_advantages(batch, advantages)
    if standing is not None:
        batch = with_standing(batch, standing)
    if rollouts.injected is not None:
        weight, losers = method.loss_on_injected, method.loss_on_injected_losers
        batch = with_injected(batch, rollouts.injected, weight, weight * losers)
    return batch, imitated


def compile_ahead(
    cfg: Config,
    learner: Learner,
    state: TrainState,
    prompts: Prompts,
    compiled: Compile = compile_now,
) -> None:
    """Compiles what `learn` runs for completions as long as they may be, without running it.

    Args:
      cfg: the run's config.
      learner: of the coming step (`Run.at`).
      state: its state; read only for shapes, and may be shapes.
      prompts: of a step, in their bucket.
      compiled: compiles `facts`, `logps` and `update`, those that the method needs.
    """
    needed = algo.needs(cfg.method)
    limit = cfg.rollout.max_completion_tokens
    shape = (len(prompts.uid), cfg.group_places, min(bucket(limit), limit))
    ones, zeros = np.ones(shape, bool), np.zeros(shape, np.float32)
    rollouts = Rollouts(
        prompts=prompts,
        tokens=np.zeros(shape, np.int32),
        mask=ones,
        behavior_logp=zeros,
        finished=ones[..., 0],
    )
    batch = unweighted(rollouts, ones[..., 0])
    if cfg.model.routing_replay != "off":
        batch = with_routes(batch, *blank_routes(architecture(cfg.model.path), batch))
    marks = cfg.plan.marks
    if needed & {"values", "entropy_mask", "preference"}:
        compiled("facts", learner.lower_forward(state, _even(cfg, batch)[0], facts=True))
    if _rounds(cfg) or state.ref_params is not None:
        compiled("logps", learner.lower_forward(state, _even(cfg, batch)[0], facts=False))
    if learner.frozen is not None and needed & {"ref_logp", "answer_logp"}:
        base = dataclasses.replace(state, params=None)
        compiled("logps", learner.lower_forward(base, _even(cfg, batch)[0], facts=False))
    batch = dataclasses.replace(
        batch,
        unit_ratio=ones if marks or cfg.method.source != "policy" or "guidance" in needed else None,
        off_policy=ones if marks else None,
        ref_logp=zeros if needed & {"ref_logp", "answer_logp"} else None,
        behavior_logp=zeros if "behavior_logp" in needed else None,
        segments=np.zeros(shape, np.int32) if "segments" in needed else None,
        old_values=zeros if "values" in needed else None,
        returns=zeros if "values" in needed else None,
        entropy_mask=ones if "entropy_mask" in needed else None,
    )
    part, *_ = minibatches(cfg.method, batch, cfg.optim.minibatches, jax.random.key(0))
    compiled("update", learner.lower_update(state, _even(cfg, part)[0]))


def _rounds(cfg: Config) -> bool:
    """True if old log-probs must be the learner's, since those of the sampler are rounded."""
    return cfg.inexact_sampler and cfg.method.source != "reference"


def _with_logps(
    run: Run, state: TrainState, collected: Collected
) -> tuple[Batch, TokenFacts | None, dict[str, float]]:
    """The completions with the log-probs that the method compares.

    Also what one more forward pass says about them, where the method asks, and how well sampler
    and learner agree.
    """
    cfg, needed = run.cfg, algo.needs(run.cfg.method)
    batch = unweighted(collected.rollouts, collected.kept[:, None] & collected.valid)
    extra: dict[str, float] = {}
    batch = _with_ratios(cfg.method, batch, collected)
    at, old_logp, facts = sampling_params(state), None, None
    if cfg.model.routing_replay in ("measure", "r2"):
        old_logp, *routes = fetch(run.learner.routes(at, batch))
        batch = with_routes(batch, *routes)
    if needed & {"values", "entropy_mask"}:
        facts = _facts(run, state, batch)
        batch = dataclasses.replace(batch, old_values=facts.values)
    if _rounds(cfg):
        if old_logp is None and facts is not None and at is state.params:
            old_logp = np.asarray(facts.logp)
        elif old_logp is None:
            old_logp = _logps(run, at, batch)
        batch, extra = _learner_old_logp(batch, old_logp)
    if "behavior_logp" in needed:
        batch = dataclasses.replace(batch, behavior_logp=collected.rollouts.behavior_logp)
    if "segments" in needed:
        batch = dataclasses.replace(batch, segments=_segments(run, collected))
    if needed & {"ref_logp", "answer_logp"}:
        own = with_routes(batch, None, None)
        batch = dataclasses.replace(batch, ref_logp=_logps(run, state.ref_params, own))
    return batch, facts, extra


def _with_ratios(method: algo.Method, batch: Batch, collected: Collected) -> Batch:
    """The batch with what each token's policy is compared with, and what it is trained under."""
    standing, own = collected.rollouts.standing, _undrawn(method, collected)
    if standing is None:
        return dataclasses.replace(batch, unit_ratio=own)
    kind = np.asarray(standing.ratio)[..., None] + np.zeros(batch.mask.shape, np.int64)
    injected = collected.rollouts.injected
    at_one = (kind == algo.Ratio.UNIT) & (False if injected is None else np.asarray(injected))
    own = (kind == algo.Ratio.OWN) | (own & ~at_one if own is not None else False)
    return dataclasses.replace(
        batch,
        unit_ratio=own,
        off_policy=at_one | (kind == algo.Ratio.BEHAV) | (kind == algo.Ratio.RECORDED),
        old_logp=np.where(at_one, np.float32(0), np.asarray(batch.old_logp)),
        contexts=standing.contexts,
    )


def _undrawn(method: algo.Method, collected: Collected) -> Bool[np.ndarray, "P G T"] | None:
    """True at the tokens of worked solutions, whole or as guidance; None if there can be none."""
    shape, injected = collected.rollouts.mask.shape, collected.rollouts.injected
    if collected.reference is not None:
        return np.broadcast_to(collected.reference[..., None], shape).copy()
    if method.plan == "uniform":
        return None
    return np.zeros(shape, bool) if injected is None else np.asarray(injected)


def _even(cfg: Config, batch: Batch) -> tuple[Batch, Rows | None]:
    """The batch as the learner takes it, and where its completions went if groups are uneven."""
    if not cfg.plan.uneven:
        return batch, None
    rows = rows_of(batch, cfg.group_rows)
    return rows.apart(batch), rows


def _logps(run: Run, params: PyTree, batch: Batch) -> Float32[np.ndarray, "P G T"]:
    if run.cfg.plan.uneven:
        return logps_in_rows(run.learner, params, batch, run.cfg.group_rows)
    return fetch(run.learner.logps(params, batch))


def _facts(run: Run, state: TrainState, batch: Batch) -> TokenFacts:
    even, rows = _even(run.cfg, batch)
    found = fetch(run.learner.facts(state, even))
    return found if rows is None else jax.tree.map(rows.together, found)


def _learner_old_logp(
    batch: Batch, old_logp: Float[np.ndarray, "P G T"]
) -> tuple[Batch, dict[str, float]]:
    """The batch with the learner's log-probs, and how far they are from the sampler's."""
    sampled = np.asarray(batch.mask)
    if batch.unit_ratio is not None:
        sampled = sampled & ~np.asarray(batch.unit_ratio)
    if batch.off_policy is not None:  # another law's log-probs stay what they are
        off_policy = np.asarray(batch.off_policy)
        sampled = sampled & ~off_policy
        old_logp = np.where(off_policy, np.asarray(batch.old_logp), old_logp)
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
    needed, standing = algo.needs(cfg.method), collected.rollouts.standing
    valid = collected.valid & collected.kept[:, None]
    if standing is not None:
        valid = valid & np.asarray(standing.counted)
    cut = ~np.asarray(collected.rollouts.finished) & np.asarray(batch.mask).any(-1)
    form = run.collector.task.format_pattern
    facts: dict[str, Any] = {
        "lengths": lambda: np.asarray(batch.mask).sum(-1),
        "step": lambda: np.asarray(state.step, np.int32),
        "sequence_kl": lambda: algo.sequence_kl(cfg.method, token_kl(batch), batch.mask),
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
        "values": lambda: batch.old_values,
        "answer_logp": lambda: answer_logp(batch, _segments(run, collected)),
        "prefix_scores": lambda: scores_of(run.learner, state.ref_params, state, batch),
        "truncated": lambda: cut,
        "skilled": lambda: (used(collected.rollouts) > 0)[:, None] & np.ones(cut.shape, bool),
        "non_incorrect": lambda: collected.correct | ~in_form(collected.texts, form),
        "repeats": lambda: np.asarray(
            algo.is_repeat(batch.tokens, batch.mask, cfg.method.repeat_tokens)
        ),
        "chance": lambda: chances(
            named_key(run.root, int(state.step), "row_mask"), batch.prompts.uid, cut.shape[1]
        ),
        "strata": lambda: strata(collected.texts, cfg.rollout.stratum_mark),
        "prior": lambda: np.asarray(
            algo.tracked_estimates(cfg.method, state.strategy["tracker"], ids).prior, np.float32
        ),
    }
    return algo.Side(
        max_completion_tokens=cfg.rollout.max_completion_tokens,
        valid=valid,
        **{name: compute() for name, compute in facts.items() if name in needed},
    )


def _segments(run: Run, collected: Collected) -> Int32[np.ndarray, "P G T"]:
    mark = run.cfg.rollout.segment_mark
    return segments(run.model.tokenizer, collected.rollouts, mark)


def _steps(side: algo.Side) -> dict[str, float]:
    """How many steps completions have, and how many of them the preference model likes."""
    assert side.prefix_scores is not None
    assert side.segments is not None
    assert side.mask is not None
    found = steps(side.prefix_scores, side.segments, side.mask)
    ends, rewards = np.asarray(found.ends), np.asarray(found.rewards)
    there = np.asarray(side.mask).any(-1)
    return {
        "preference/steps_mean": float(ends.sum(-1)[there].mean()) if there.any() else 0.0,
        "preference/helped_fraction": float((rewards[ends] > 0.5).mean()) if ends.any() else 0.0,
    }


def _uncoupled(run: Run, state: TrainState, part: Batch) -> Batch:
    """The minibatch, with what couples its completions at these weights put into advantages."""
    method = run.cfg.method
    if algo.uncoupled(method) == method:
        return part
    rows = lambda x: jnp.asarray(x).reshape(-1, x.shape[-1])  # noqa: E731
    values = algo.coupled_advantages(
        method,
        rows(_logps(run, state.params, part)),
        old_logp=rows(part.old_logp),
        mask=rows(part.mask),
        advantages=np.asarray(part.advantages)[..., 0],
        weights=rows(part.weights),
    )
    return dataclasses.replace(part, advantages=np.asarray(values).reshape(part.mask.shape))
