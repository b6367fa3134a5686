"""What a step shows of itself: its metrics, its samples, and whether its invariants held.

Names, units and meanings of metrics are in `metrics.METRICS`. Letters: P prompts, G completions.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jgrpo.algo import Ratio, needs
from jgrpo.collected import Collected
from jgrpo.config import Config
from jgrpo.learner.optim import learning_rate, updates_per_step
from jgrpo.models.load import LoadedModel
from jgrpo.rewards.score import Scores
from jgrpo.roles import Written
from jgrpo.run_files import Sample
from jgrpo.strategy.replay import came_back
from jgrpo.types import Batch, Rollouts, Standing

_INVARIANTS = ("invariant/logp_gap_max", "invariant/ratio_gap_max", "kl/behavior")
_GRAM = 4
# float32: rounding of sums in another order. bfloat16 sampler and learner round differently.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0}
_TOLERANCE_INT8 = 2.0


def combine_updates(updates: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Metrics of a step from those of its updates.

    Means over the updates, except: maxima of `_max`, the sum of skipped updates, and invariants,
    which hold before anything has moved and so are those of the first update.

    Args:
      updates: the metrics that `Learner.update` returned, in order.
    """
    first = {name: float(value) for name, value in updates[0].items()}
    combined = {}
    for name in first:
        values = [float(update[name]) for update in updates]
        combined[name] = max(values) if name.endswith("_max") else float(np.mean(values))
    combined["optim/skipped_updates"] = sum(float(u["optim/skipped_updates"]) for u in updates)
    combined["optim/updates"] = len(updates)
    combined["invariant/logp_gap_max"] = first["invariant/logp_gap_max"]
    combined["invariant/ratio_gap_max"] = first["ratio/deviation_max"]
    combined["kl/behavior"] = first["kl/old"]
    return combined


def step_metrics(
    cfg: Config,
    step: int,
    collected: Collected,
    batch: Batch,
    learned: Mapping[str, float],
) -> dict[str, float]:
    """All metrics of a step but those of its whole time and its evaluation.

    Args:
      cfg: the run's config.
      step: number of the step.
      collected: the scored completions.
      batch: the same with masks and advantages as trained.
      learned: metrics of the updates, with `time/learner_s`.
    """
    # Worked solutions, which nobody sampled, stand last in their groups.
    size = collected.present.shape[1] - (cfg.method.source == "both")
    drew = collected.present[:, :size]
    rollouts, rewards = collected.rollouts, collected.rewards[:, :size].astype(np.float64)
    lengths = np.asarray(rollouts.mask)[:, :size].sum(-1)[drew]
    finished = np.asarray(rollouts.finished)[:, :size][drew]
    prompt_tokens = int((np.asarray(rollouts.prompts.mask).sum(1) * drew.sum(1)).sum())
    injected = _injected(rollouts)[:, :size][drew]
    drawn = int((lengths - injected)[~came_back(rollouts)[:, :size][drew]].sum())
    repetition = _repetition(collected.completion_ids)[collected.present.reshape(-1)]
    valid = rewards[collected.valid[:, :size]]
    advantages = np.asarray(batch.advantages)[np.asarray(batch.mask)]
    rate = learning_rate(cfg.optim, cfg.run.steps)(step * updates_per_step(cfg.optim))
    metrics = {
        "reward/mean": float(valid.mean()) if valid.size else 0.0,
        "reward/std": float(valid.std()) if valid.size else 0.0,
        "completion/length_mean": float(lengths.mean()),
        "completion/length_min": int(lengths.min()),
        "completion/length_max": int(lengths.max()),
        "completion/finished_fraction": float(finished.mean()),
        "completion/clipped_fraction": float(1.0 - finished.mean()),
        "completion/repetition": float(repetition.mean()),
        "advantage/abs_mean": float(np.abs(advantages).mean()) if advantages.size else 0.0,
        "tokens/prompt": prompt_tokens,
        "tokens/completion": drawn,
        "tokens/total": prompt_tokens + drawn,
        "optim/lr": np.asarray(rate).item(),
        "throughput/rollout_tok_s": drawn / max(collected.rollout_s, 1e-9),
        "throughput/learner_tok_s": (prompt_tokens + drawn) / learned["time/learner_s"],
    }
    metrics |= _sampling(collected, drops=cfg.method.sampler != "uniform")
    if "guidance" in needs(cfg.method):
        metrics |= _guidance(injected, collected.correct[:, :size][drew])
    if rollouts.standing is not None:
        metrics |= _rounds(rollouts.standing, drew, collected.meter.drawn)
        drew = drew & np.asarray(rollouts.standing.counted)
    metrics |= _by_group(np.where(drew, rewards, np.nan), cfg.method.allocate != "uniform")
    return metrics | _by_reward(collected.scores) | collected.scores.metrics() | dict(learned)


def _sampling(collected: Collected, *, drops: bool) -> dict[str, float | int]:
    """What sampling took in all rounds; where groups are dropped, the tokens drawn for all too."""
    return {
        "sampling/rounds": collected.rounds,
        "sampling/kept_fraction": float(collected.kept.mean()),
        "sampling/wasted_fraction": collected.meter.waste,
        "time/rollout_s": collected.rollout_s,
        "time/prefill_s": collected.meter.prefill_s,
        "time/decode_s": collected.meter.decode_s,
        "time/reward_s": collected.reward_s,
        **({"plan/drawn_tokens": collected.meter.drawn} if drops else {}),
    }


def _by_reward(scores: Scores) -> dict[str, float]:
    """The mean of each reward over the completions that it has said something of."""
    found = {}
    for name, column in zip(scores.names, scores.columns.T, strict=True):
        given = column[~np.isnan(column)].astype(np.float64)
        found[f"reward/{name}/mean"] = float(given.mean()) if given.size else 0.0
    return found


def _guidance(
    injected: Int[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]
) -> dict[str, float | int]:
    """How far completions were led, and how right they are."""
    return {
        "guidance/tokens": int(injected.max(initial=0)),
        "guidance/share": float((injected > 0).mean()),
        "guidance/accuracy": float(correct.mean()),
        "tokens/injected": int(injected.sum()),
    }


def _rounds(standing: Standing, drew: Bool[np.ndarray, "P G"], drawn: int) -> dict[str, float]:
    """Who was asked again, and what became of it."""
    levels = np.asarray(standing.level)[drew]
    share = lambda x: float(np.asarray(x)[drew].mean())  # noqa: E731
    return {
        "plan/again_fraction": float(np.asarray(standing.again).any(axis=1).mean()),
        "plan/replaced_fraction": share(standing.replaced),
        "plan/likelihood_fraction": share(standing.likelihood > 0),
        "plan/level_mean": float(levels[levels > 0].mean()) if (levels > 0).any() else 0.0,
        "plan/drawn_tokens": drawn,
    }


def _injected(rollouts: Rollouts) -> Int[np.ndarray, "P G"]:
    """Tokens of each completion that nobody drew."""
    if rollouts.injected is None:
        return np.zeros(rollouts.mask.shape[:2], np.int64)
    return np.asarray(rollouts.injected).sum(-1)


def _by_group(rewards: Float[np.ndarray, "P G"], allocated: bool) -> dict[str, float]:
    """How rewards vary inside groups, and, where sizes differ, how; nan where no completion is."""
    rewards = rewards[~np.isnan(rewards).all(axis=1)]
    metrics = {
        "reward/group_std": float(np.nanstd(rewards, axis=1).mean()),
        "reward/zero_variance_fraction": float(
            (np.nanmax(rewards, axis=1) == np.nanmin(rewards, axis=1)).mean()
        ),
    }
    if allocated:
        sizes = (~np.isnan(rewards)).sum(axis=1)
        metrics |= {"sampling/group_min": int(sizes.min()), "sampling/group_max": int(sizes.max())}
    return metrics


def _repetition(completion_ids: Sequence[list[int]]) -> Float[np.ndarray, " N"]:
    """Share of the 4-grams of each completion that it has had before; 0 for a shorter one."""
    shares = []
    for row in completion_ids:
        grams = [tuple(row[i : i + _GRAM]) for i in range(len(row) - _GRAM + 1)]
        shares.append(1.0 - len(set(grams)) / len(grams) if grams else 0.0)
    return np.array(shares)


def whole_step(metrics: Mapping[str, float], step_s: float) -> dict[str, float]:
    """The metrics that need the time of the whole step, evaluation and writing left out.

    Args:
      metrics: the other metrics of the step.
      step_s: seconds from its beginning to the end of its last update.
    """
    stages = ("time/rollout_s", "time/reward_s", "time/learner_s")
    return {
        "time/step_s": step_s,
        "time/host_s": step_s - sum(metrics[name] for name in stages),
        "throughput/step_tok_s": metrics["tokens/completion"] / step_s,
    }


def broken_invariants(cfg: Config, metrics: Mapping[str, float]) -> Iterator[str]:
    """Says which step-0 invariants do not hold.

    Before the first update of a step the policy is the one that sampled: the ratio is 1, and
    sampler and learner give the same log-probs up to rounding. Nothing is said where no policy
    sampled, or an older one.

    Args:
      cfg: the run's config.
      metrics: the metrics of a step.
    """
    if cfg.method.source == "reference" or cfg.rollout.lag:
        return
    limit = _TOLERANCE_INT8 if cfg.quantized_rollouts else _TOLERANCE[cfg.model.dtype]
    for name in _INVARIANTS:
        value = metrics[name]
        if not value <= limit:
            yield (
                f"BROKEN INVARIANT: {name} = {value:.3g}, more than {limit:g}: the learner does "
                "not compute the log-probs that the sampler drew with. Gradients of this run are "
                "not those of its method."
            )


def samples(model: LoadedModel, step: int, collected: Collected, batch: Batch) -> list[Sample]:
    """The completions of a step as they are written to `samples/`, those of roles last.

    Args:
      model: for the tokenizer.
      step: number of the step.
      collected: the scored completions.
      batch: the same with advantages.
    """
    given = _samples(model, step, collected, np.asarray(batch.advantages)[..., 0])
    scores, found = collected.scores, list[Sample]()
    for i, sample in given:
        each = zip(scores.names, scores.columns[i], strict=True)
        rewards = {name: None if np.isnan(value) else float(value) for name, value in each}
        found.append(dataclasses.replace(sample, rewards=rewards, reward=float(scores.total[i])))
    for role, drawn in collected.roles.items():
        paid = drawn.rewards.reshape(-1)
        for i, sample in _samples(model, step, drawn, drawn.advantages):
            found.append(dataclasses.replace(sample, role=role, reward=float(paid[i])))
    return found


def _samples(
    model: LoadedModel, step: int, drawn: Collected | Written, advantages: Float[np.ndarray, "P G"]
) -> Iterator[tuple[int, Sample]]:
    """Completions whose rewards are still to be said, with their numbers, group by group."""
    rollouts = drawn.rollouts
    tokens, mask, logp = (
        np.asarray(x) for x in (rollouts.tokens, rollouts.mask, rollouts.behavior_logp)
    )
    prompts, injected, standing = rollouts.prompts, _injected(rollouts), rollouts.standing
    for i, (p, g) in enumerate(np.ndindex(*mask.shape[:2])):
        prompt_ids = np.asarray(prompts.tokens)[p][np.asarray(prompts.mask)[p]]
        there = mask[p, g]
        if not there.any():  # a place that the method gave no completion
            continue
        yield (
            i,
            Sample(
                step=step,
                prompt_index=int(prompts.uid[p]),
                group_index=g,
                prompt_ids=prompt_ids,
                completion_ids=tokens[p, g][there],
                prompt=str(model.tokenizer.decode(prompt_ids)),
                completion=drawn.completions[i],
                logp=logp[p, g][there],
                rewards={},
                reward=0.0,
                advantage=float(advantages[p, g]),
                finished=bool(rollouts.finished[p, g]),
                injected=int(injected[p, g]),
                **({} if standing is None else _stands(model, standing, p, g)),
            ),
        )


def _stands(model: LoadedModel, standing: Standing, p: int, g: int) -> dict[str, Any]:
    """How a completion stands in its group; fields of a sample."""
    contexts, text = standing.contexts, None
    if contexts is not None and (number := int(contexts.asked[p, g])):
        at = p, number - 1
        ids = np.asarray(contexts.tokens)[at][np.asarray(contexts.mask)[at]]
        text = str(model.tokenizer.decode(ids))
    return {
        "round": int(standing.round[p, g]),
        "level": int(standing.level[p, g]),
        "context": text,
        "replaced": bool(standing.replaced[p, g]),
        "replayed": int(standing.ratio[p, g]) == Ratio.RECORDED,
    }
