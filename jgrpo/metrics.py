"""The metrics of a run: the one table of their names.

`METRICS` gives each metric's unit, meaning and, where TRL has one, TRL's name. A name with a part
in angle brackets is a pattern: `reward/<function>/mean`, `eval/pass@<k>`. Logging a name that is
not in the table raises. Wall-clock metrics end in `_s` or contain `tok_s`; all others are equal in
two runs of one config on one machine. Metrics are computed in `observe.py` and written by
`run_files.py`; trackers are in `loggers.py`.
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from jgrpo.types import AnyArray

Number: TypeAlias = float | int | np.generic | AnyArray


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a metric is.

    Attributes:
      unit: unit of the value.
      meaning: what is measured, over what.
      trl: TRL's name of the same quantity (its GRPOTrainer), or None.
      label: short name on the progress line; empty: not shown there.
    """

    unit: str
    meaning: str
    trl: str | None = None
    label: str = ""


def metric(name: str) -> Metric:
    """The row of a metric.

    Args:
      name: a metric's name, such as `reward/mean` or `eval/pass@4`.

    Returns:
      Its row in `METRICS`.

    Raises:
      ValueError: if no row of the table has, or matches, the name.
    """
    if name in METRICS and "<" not in name:
        return METRICS[name]
    for pattern, row in _pattern_rows():
        if pattern.fullmatch(name):
            return row
    close = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"metric {name!r} has no row in jgrpo.metrics.METRICS{hint} Add a row with its unit and "
        "meaning, or log it under a listed name."
    )


@functools.cache
def _pattern_rows() -> list[tuple[re.Pattern[str], Metric]]:
    rows: list[tuple[re.Pattern[str], Metric]] = []
    for name, row in METRICS.items():
        if "<" in name:
            escaped = re.escape(name).replace("<k>", r"[1-9]\d*").replace("<function>", r"[^/]+")
            rows.append((re.compile(escaped), row))
    return rows


def metrics_page() -> str:
    """The reference page of all metrics as Markdown (`docs/metrics.md`)."""
    lines = [
        "# Metrics",
        "",
        "Every name that a run writes to `metrics.jsonl`. Generated from `jgrpo/metrics.py`.",
        "A number that is not finite is written as `null`, because JSON has no other word for it.",
        "Fields that end in `_s` or contain `tok_s` are wall-clock; no two runs share them.",
        "An `eval/` field exists at the steps that evaluate.",
    ]
    stage = ""
    for name, row in METRICS.items():
        if name.split("/")[0] != stage:
            stage = name.split("/")[0]
            lines += ["", f"## {stage}", "", "| metric | unit | meaning | in TRL |"]
            lines += ["|---|---|---|---|"]
        trl = f"`{row.trl}`" if row.trl else ""
        lines.append(f"| `{name}` | {row.unit} | {row.meaning} | {trl} |")
    return "\n".join(lines) + "\n"


def plain_metrics(metrics: Mapping[str, Number]) -> dict[str, float | int | None]:
    """Metrics as JSON values, sorted by name: floats rounded to float32, non-finite ones None.

    Args:
      metrics: scalars by name.

    Returns:
      The same names in order, with Python numbers.

    Raises:
      ValueError: for a name without a row in `METRICS`, or a value that is not a scalar number.
    """
    plain: dict[str, float | int | None] = {}
    for name in sorted(metrics):
        metric(name)
        value = np.asarray(metrics[name])
        if value.ndim != 0 or not np.issubdtype(value.dtype, np.number):
            raise ValueError(
                f"metric {name!r} must be one number, got shape {value.shape} of {value.dtype}"
            )
        is_integer = np.issubdtype(value.dtype, np.integer)
        plain[name] = int(value) if is_integer else plain_float(float(value))
    return plain


def plain_float(value: float | None) -> float | None:
    """The shortest decimal that reads back as the same float32: 1e-06, not 9.99999997475e-07.

    A number that is not finite, and None, is None.
    """
    if value is None or not math.isfinite(value):
        return None
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    return float(str(rounded)) if np.isfinite(rounded) else value


METRICS: Mapping[str, Metric] = {
    "reward/mean": Metric("reward", "mean total reward of all completions", "reward", "reward"),
    "reward/std": Metric("reward", "standard deviation of the total reward over all completions"),
    "reward/group_std": Metric(
        "reward", "standard deviation inside a group, mean over groups", "reward_std"
    ),
    "reward/zero_variance_fraction": Metric(
        "fraction", "groups whose rewards are all equal (no gradient)", "frac_reward_zero_std"
    ),
    "reward/<function>/mean": Metric(
        "reward", "mean of one reward function, before its weight", "rewards/<function>/mean"
    ),
    "reward/<function>/failures": Metric(
        "count", "completions that an isolated reward raised, crashed, hung or gave no number on"
    ),
    "reward/failures": Metric("count", "sum of these over the rewards"),
    "reward/masked_fraction": Metric(
        "fraction", "completions not trained on, since a reward failed or none gave a number"
    ),
    "reward/calls_per_s": Metric(
        "calls/s", "calls of isolated rewards that the workers answer when they never wait"
    ),
    "completion/length_mean": Metric(
        "tokens", "mean completion length, EOS included", "completions/mean_length", "length"
    ),
    "completion/length_min": Metric("tokens", "shortest completion", "completions/min_length"),
    "completion/length_max": Metric("tokens", "longest completion", "completions/max_length"),
    "completion/finished_fraction": Metric("fraction", "completions that ended themselves"),
    "completion/clipped_fraction": Metric(
        "fraction", "completions cut off at max_completion_tokens", "completions/clipped_ratio"
    ),
    "completion/repetition": Metric(
        "fraction", "4-grams of a completion that it has had before, mean over completions"
    ),
    "advantage/abs_mean": Metric("advantage", "mean magnitude of the advantages"),
    "loss/policy": Metric("loss", "policy term of the loss, without penalties"),
    "loss/kl": Metric("loss", "penalty term of the loss, its coefficient included"),
    "loss/bonus": Metric("loss", "entropy bonus, its coefficient included"),
    "loss/constraint": Metric("loss", "drift from the old policy times the constraint's factor"),
    "loss/total": Metric("loss", "what the gradient is taken of", "loss"),
    "ratio/mean": Metric("1", "mean ratio of policy to old policy over trained tokens"),
    "ratio/clip_fraction": Metric(
        "fraction", "trained tokens whose gradient the trust slot cuts", "clip_ratio/region_mean"
    ),
    "ratio/clip_low_fraction": Metric(
        "fraction", "tokens cut at the lower bound (advantage < 0)", "clip_ratio/low_mean"
    ),
    "ratio/clip_high_fraction": Metric(
        "fraction", "tokens cut at the upper bound (advantage > 0)", "clip_ratio/high_mean"
    ),
    "ratio/deviation_max": Metric("1", "largest |ratio - 1| of a trained token"),
    "veto/factor_mean": Metric("1", "mean factor of the veto slot on the policy term"),
    "kl/old": Metric("nats", "estimated (k3) KL of the old policy to the policy, mean over tokens"),
    "kl/ref": Metric(
        "nats", "estimated (k3) KL of the policy to the reference, mean over tokens", "kl"
    ),
    "kl/behavior": Metric(
        "nats", "estimated (k3) KL of the sampler to the learner at equal weights"
    ),
    "entropy/mean": Metric("nats", "mean entropy of the policy's next-token law", "entropy"),
    "grad/norm": Metric("1", "global gradient norm before clipping", "grad_norm"),
    "optim/lr": Metric("1", "learning rate of the last update", "learning_rate"),
    "optim/updates": Metric("count", "optimizer updates of the step"),
    "optim/skipped_updates": Metric("count", "updates of the step skipped as not finite"),
    "invariant/logp_gap_max": Metric(
        "nats",
        "largest |sampler - learner| log-prob of a token, before the step's first update",
        "sampling/sampling_logp_difference/max",
    ),
    "invariant/ratio_gap_max": Metric(
        "1", "largest |ratio - 1| in the step's first update; 0 unless something is wrong"
    ),
    "tokens/prompt": Metric("tokens", "prompt tokens of the step, once for each completion"),
    "tokens/completion": Metric("tokens", "completion tokens of the step"),
    "tokens/total": Metric("tokens", "prompt and completion tokens of the step"),
    "sampling/rounds": Metric("count", "rollout rounds of the step"),
    "sampling/kept_fraction": Metric("fraction", "sampled groups that the step trains on"),
    "time/rollout_s": Metric("s", "time of sampling"),
    "time/reward_s": Metric("s", "time of scoring that sampling does not hide"),
    "time/learner_s": Metric("s", "time of log-probs, gradients and updates"),
    "time/host_s": Metric("s", "rest of the step: prompts, tokenizer, advantages"),
    "time/step_s": Metric("s", "time of the whole step, evaluation excluded", "step_time"),
    "throughput/rollout_tok_s": Metric("tokens/s", "completion tokens by time of sampling"),
    "throughput/learner_tok_s": Metric("tokens/s", "trained tokens by time of the learner"),
    "throughput/step_tok_s": Metric(
        "tokens/s", "completion tokens by time of the step", None, "tok/s"
    ),
    "eval/greedy_accuracy": Metric("fraction", "held-out prompts answered correctly when greedy"),
    "eval/greedy_accuracy_low": Metric("fraction", "lower end of its 95 % bootstrap interval"),
    "eval/greedy_accuracy_high": Metric("fraction", "upper end of its 95 % bootstrap interval"),
    "eval/pass@<k>": Metric("fraction", "unbiased chance that one of k samples is correct"),
    "eval/pass@<k>_low": Metric("fraction", "lower end of its 95 % bootstrap interval"),
    "eval/pass@<k>_high": Metric("fraction", "upper end of its 95 % bootstrap interval"),
    "eval/maj@<k>": Metric("fraction", "prompts whose most frequent answer of k is correct"),
    "eval/maj@<k>_low": Metric("fraction", "lower end of its 95 % bootstrap interval"),
    "eval/maj@<k>_high": Metric("fraction", "upper end of its 95 % bootstrap interval"),
    "eval/length_mean": Metric("tokens", "mean length of the greedy completions"),
    "eval/finished_rate": Metric("fraction", "greedy completions that ended themselves"),
    "eval/format_rate": Metric("fraction", "greedy completions in the task's format"),
}
