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
            escaped = re.escape(name).replace("<k>", r"[1-9]\d*")
            escaped = escaped.replace("<function>", r"[^/]+").replace("<role>", r"[^/]+")
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
    "completion/spared_fraction": Metric(
        "fraction", "completions that count in their groups but are not trained on (row_mask)"
    ),
    "advantage/abs_mean": Metric("advantage", "mean magnitude of the advantages"),
    "loss/policy": Metric("loss", "policy term of the loss, without penalties"),
    "loss/kl": Metric("loss", "penalty term of the loss, its coefficient included"),
    "loss/bonus": Metric("loss", "entropy bonus, its coefficient included"),
    "loss/constraint": Metric("loss", "drift from the old policy times the constraint's factor"),
    "loss/value": Metric("loss", "the critic's loss, its coefficient included"),
    "loss/router": Metric("loss", "what routers of experts add, coefficients included"),
    "loss/total": Metric("loss", "what the gradient is taken of", "loss"),
    "ratio/mean": Metric("1", "mean ratio of policy to old policy over trained tokens"),
    "ratio/variance": Metric(
        "1", "mean (ratio - 1)^2 over trained tokens; 1 is the mean under the old policy"
    ),
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
    "correction/factor_mean": Metric("1", "mean factor of the correction slot on the policy term"),
    "kl/old": Metric("nats", "estimated (k3) KL of the old policy to the policy, mean over tokens"),
    "kl/ref": Metric(
        "nats", "estimated (k3) KL of the policy to the reference, mean over tokens", "kl"
    ),
    "kl/behavior": Metric(
        "nats", "estimated (k3) KL of the sampler to the learner at equal weights"
    ),
    "entropy/mean": Metric(
        "nats", "mean entropy of the policy's next-token law (`log.entropy`)", "entropy"
    ),
    "router/balance": Metric(
        "1", "experts * sum of load * probability, mean over tokens and layers; 1: balanced"
    ),
    "router/z": Metric("1", "squared log-sum-exp of routers' logits, mean over tokens and layers"),
    "router/differs": Metric(
        "fraction", "tokens for which a router would not pick the experts of the rollout"
    ),
    "value/mean": Metric("reward", "mean of the critic's predictions over trained tokens"),
    "value/squared_error": Metric(
        "reward^2", "mean squared distance of the critic's predictions to their targets"
    ),
    "value/explained_variance": Metric(
        "fraction", "variance of the returns that the critic's old values explain; at most 1"
    ),
    "grad/norm": Metric("1", "global gradient norm before clipping", "grad_norm"),
    "optim/lr": Metric("1", "learning rate of the last update", "learning_rate"),
    "optim/updates": Metric("count", "optimizer updates of the step"),
    "optim/skipped_updates": Metric(
        "count", "updates of the step skipped as not finite, those of roles too"
    ),
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
    "tokens/injected": Metric("tokens", "tokens of the step that nobody drew: guidance"),
    "guidance/tokens": Metric("tokens", "tokens of a worked solution before guided completions"),
    "guidance/share": Metric("fraction", "completions of the step that were guided"),
    "guidance/accuracy": Metric("fraction", "correct completions of the step, guided ones too"),
    "preference/loss": Metric("nats", "the preference model's loss, before the step's updates"),
    "preference/accuracy": Metric(
        "fraction", "pairs of a right and a wrong completion that it tells apart, likewise"
    ),
    "preference/pairs": Metric("count", "such pairs in the step"),
    "preference/steps_mean": Metric("count", "steps of a completion, mean over completions"),
    "preference/helped_fraction": Metric(
        "fraction", "steps after which the preference model prefers the completion to before"
    ),
    "ws/stopped_fraction": Metric(
        "fraction",
        "completions that plan `stop` has ended behind a step which was doubted",
    ),
    "plan/again_fraction": Metric("fraction", "groups that the method's plan asked again"),
    "plan/replaced_fraction": Metric(
        "fraction", "completions trained that stand where another had been drawn"
    ),
    "plan/likelihood_fraction": Metric("fraction", "completions trained by their likelihood"),
    "plan/level_mean": Metric(
        "1", "mean level of the hints, or of the budgets, that completions were drawn under"
    ),
    "plan/drawn_tokens": Metric("tokens", "tokens drawn in all rounds, those not trained too"),
    "expert/stored": Metric("count", "predictions that wait to be imitated, after the step"),
    "expert/trained": Metric("count", "predictions that the step imitates"),
    "hint/valid_fraction": Metric("fraction", "hints written in the step that may be used"),
    "hint/leak_fraction": Metric("fraction", "hints that tell the answer"),
    "hint/reward_mean": Metric("reward", "what the hinter gets for a hint, mean over hints"),
    "hint/reliance_mean": Metric(
        "nats",
        "log-prob of a token without the hint less that with it, mean over right completions under"
        " hints; below 0: they lean on it",
    ),
    "skill/used_fraction": Metric("fraction", "groups of the step that worked with a skill"),
    "skill/utility_mean": Metric("reward", "mean utility of the library's skills, after the step"),
    "skill/library_size": Metric("count", "skills of cache and reservoir, after the step"),
    "skill/made": Metric("count", "skills that the step has brought: 1, or 0 if no group is mixed"),
    "skill/written": Metric(
        "count", "of them such as the policy has written; others tell what a completion begins with"
    ),
    "skill/verified": Metric(
        "fraction", "of them such as a completion that works with it is right; 0 without one"
    ),
    "call/mean": Metric("count", "answered calls of a main agent's completion, mean over these"),
    "call/dropped_fraction": Metric(
        "fraction", "answers that the sub-agent does not learn from, since there are too many"
    ),
    "call/duplicated_fraction": Metric(
        "fraction", "completions the sub-agent learns from that are there once more, for fullness"
    ),
    "call/form_fraction": Metric("fraction", "answers in form"),
    "call/judged_fraction": Metric("fraction", "answers in form that the experts have judged"),
    "call/reward_mean": Metric(
        "reward", "what the sub-agent gets, mean over what it learns from; 0 where that is nothing"
    ),
    "role/<role>/loss": Metric("loss", "loss of a policy beside the policy, mean over its updates"),
    "role/<role>/grad_norm": Metric("1", "its global gradient norm before clipping, likewise"),
    "role/<role>/updates": Metric("count", "its updates; 0 where it had nothing to write"),
    "sampling/rounds": Metric("count", "rollout rounds of the step"),
    "sampling/temperature": Metric("1", "temperature of the step, where the method controls it"),
    "sampling/diversity": Metric(
        "fraction", "n-grams of a prompt's completions that differ, mean over prompts, likewise"
    ),
    "sampling/group_min": Metric(
        "count", "fewest completions of a prompt, where the method allocates them"
    ),
    "sampling/group_max": Metric("count", "most completions of a prompt, likewise"),
    "sampling/kept_fraction": Metric("fraction", "sampled groups that the step trains on"),
    "sampling/wasted_fraction": Metric("fraction", "steps of slots that drew no token to be kept"),
    "draw/success_mean": Metric(
        "fraction", "success rate that the prompts of the step were known by, those asked before"
    ),
    "draw/asked_before_fraction": Metric("fraction", "prompts of the step that were asked before"),
    "draw/paired_fraction": Metric(
        "fraction", "prompts in pairs of one seldom solved and one seldom missed"
    ),
    "replay/fraction": Metric("fraction", "groups with a completion of an earlier step"),
    "replay/stored_prompts": Metric("count", "prompts with a stored completion, after the step"),
    "replay/retired_prompts": Metric("count", "prompts that are asked no more, after the step"),
    "refill/replaced_fraction": Metric(
        "fraction", "groups without a gradient whose place a copy of another takes"
    ),
    "refill/copies_max": Metric("count", "most times that a group is trained in the step"),
    "time/rollout_s": Metric("s", "time of sampling"),
    "time/prefill_s": Metric("s", "of it: reading the first prompts and drawing first tokens"),
    "time/decode_s": Metric("s", "of it: decode steps, and reading the prompts that wait"),
    "time/reward_s": Metric("s", "time of scoring that sampling does not hide"),
    "time/learner_s": Metric("s", "time of log-probs, gradients and updates"),
    "time/host_s": Metric("s", "rest of the step: prompts, tokenizer, advantages"),
    "time/compile_s": Metric("s", "time of the compiler within the step"),
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
