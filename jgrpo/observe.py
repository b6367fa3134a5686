"""What a step shows of itself: its metrics, its samples, and whether its invariants held.

Names, units and meanings of metrics are in `metrics.METRICS`. Letters: P prompts, G completions.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jgrpo.collect import Collected, completion_ids
from jgrpo.config import Config
from jgrpo.learner.optim import learning_rate, updates_per_step
from jgrpo.models.load import LoadedModel
from jgrpo.run_files import Sample
from jgrpo.types import Batch, Rollouts

_INVARIANTS = ("invariant/logp_gap_max", "invariant/ratio_gap_max", "kl/behavior")
_GRAM = 4
# float32: rounding of sums in another order. bfloat16 sampler and learner round differently.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0}


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
    size = cfg.rollout.group_size
    rollouts, rewards = collected.rollouts, collected.rewards[:, :size].astype(np.float64)
    lengths = np.asarray(rollouts.mask)[:, :size].sum(-1)
    finished = np.asarray(rollouts.finished)[:, :size]
    group_size = lengths.shape[1]
    prompt_tokens = int(np.asarray(rollouts.prompts.mask).sum()) * group_size
    drawn = int(lengths.sum())
    valid = rewards[collected.valid[:, :size]]
    advantages = np.asarray(batch.advantages)[np.asarray(batch.mask)]
    updates_done = step * updates_per_step(cfg.optim)
    metrics = {
        "reward/mean": float(valid.mean()) if valid.size else 0.0,
        "reward/std": float(valid.std()) if valid.size else 0.0,
        "reward/group_std": float(rewards.std(axis=1).mean()),
        "reward/zero_variance_fraction": float((np.ptp(rewards, axis=1) == 0).mean()),
        "completion/length_mean": float(lengths.mean()),
        "completion/length_min": int(lengths.min()),
        "completion/length_max": int(lengths.max()),
        "completion/finished_fraction": float(finished.mean()),
        "completion/clipped_fraction": float(1.0 - finished.mean()),
        "completion/repetition": float(_repetition(rollouts).mean()),
        "advantage/abs_mean": float(np.abs(advantages).mean()) if advantages.size else 0.0,
        "tokens/prompt": prompt_tokens,
        "tokens/completion": drawn,
        "tokens/total": prompt_tokens + drawn,
        "sampling/rounds": collected.rounds,
        "sampling/kept_fraction": float(collected.kept.mean()),
        "optim/lr": np.asarray(learning_rate(cfg.optim, cfg.run.steps)(updates_done)).item(),
        "time/rollout_s": collected.rollout_s,
        "time/reward_s": collected.reward_s,
        "throughput/rollout_tok_s": drawn / max(collected.rollout_s, 1e-9),
        "throughput/learner_tok_s": (prompt_tokens + drawn) / learned["time/learner_s"],
    }
    for name, column in zip(collected.scores.names, collected.scores.columns.T, strict=True):
        given = column[~np.isnan(column)].astype(np.float64)
        metrics[f"reward/{name}/mean"] = float(given.mean()) if given.size else 0.0
    return metrics | collected.scores.metrics() | dict(learned)


def _repetition(rollouts: Rollouts) -> Float[np.ndarray, " N"]:
    """Share of the 4-grams of each completion that it has had before; 0 for a shorter one."""
    shares = []
    for row in completion_ids(rollouts):
        grams = {tuple(row[i : i + _GRAM]) for i in range(len(row) - _GRAM + 1)}
        shares.append(1.0 - len(grams) / max(len(row) - _GRAM + 1, len(grams), 1) if grams else 0.0)
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
    sampler and learner give the same log-probs up to rounding.

    Args:
      cfg: the run's config.
      metrics: the metrics of a step.
    """
    if cfg.method.source == "reference":
        return
    limit = _TOLERANCE[cfg.model.dtype]
    for name in _INVARIANTS:
        value = metrics[name]
        if not value <= limit:
            yield (
                f"BROKEN INVARIANT: {name} = {value:.3g}, more than {limit:g}: the learner does "
                "not compute the log-probs that the sampler drew with. Gradients of this run are "
                "not those of its method."
            )


def samples(model: LoadedModel, step: int, collected: Collected, batch: Batch) -> list[Sample]:
    """The completions of a step as they are written to `samples/`.

    Args:
      model: for the tokenizer.
      step: number of the step.
      collected: the scored completions.
      batch: the same with advantages.
    """
    rollouts, scores = collected.rollouts, collected.scores
    tokens, mask, logp, advantages = (
        np.asarray(x)
        for x in (rollouts.tokens, rollouts.mask, rollouts.behavior_logp, batch.advantages)
    )
    prompts = rollouts.prompts
    rows = []
    for i, (p, g) in enumerate(np.ndindex(*mask.shape[:2])):
        prompt_ids = np.asarray(prompts.tokens)[p][np.asarray(prompts.mask)[p]]
        drawn = mask[p, g]
        rows.append(
            Sample(
                step=step,
                prompt_index=int(prompts.uid[p]),
                group_index=g,
                prompt_ids=prompt_ids,
                completion_ids=tokens[p, g][drawn],
                prompt=str(model.tokenizer.decode(prompt_ids)),
                completion=collected.completions[i],
                logp=logp[p, g][drawn],
                rewards={
                    name: None if np.isnan(value) else float(value)
                    for name, value in zip(scores.names, scores.columns[i], strict=True)
                },
                reward=float(scores.total[i]),
                advantage=float(advantages[p, g, 0]),
                finished=bool(rollouts.finished[p, g]),
            )
        )
    return rows
