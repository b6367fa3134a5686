"""What a held-out evaluation reports, and the statistics behind it.

Letters: P prompts, N completions sampled per prompt. Every score is a mean over prompts, and its
interval is a bootstrap over prompts.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

Interval: TypeAlias = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalReport:
    """The result of one evaluation. Accuracies and rates are in 0..1.

    Attributes:
      num_prompts: held-out prompts asked.
      samples_per_prompt: completions sampled per prompt; 0 if greedy only.
      greedy_accuracy: prompts whose greedy completion is correct.
      greedy_interval: its 95 % bootstrap interval.
      pass_at: unbiased chance that at least one of k samples is correct, by k.
      pass_at_interval: their 95 % bootstrap intervals.
      maj_at: prompts whose most frequent answer among the samples is correct, by their number.
      maj_at_interval: their 95 % bootstrap intervals.
      length_mean: mean tokens of the greedy completions, EOS included.
      finished_rate: greedy completions that ended themselves.
      format_rate: greedy completions in the task's format; None if the task has none.
    """

    num_prompts: int
    samples_per_prompt: int
    greedy_accuracy: float
    greedy_interval: Interval
    pass_at: Mapping[int, float]
    pass_at_interval: Mapping[int, Interval]
    maj_at: Mapping[int, float]
    maj_at_interval: Mapping[int, Interval]
    length_mean: float
    finished_rate: float
    format_rate: float | None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, for `summary.json`; numbers k become string keys."""
        row: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                value = {
                    str(k): list(entry) if isinstance(entry, tuple) else entry
                    for k, entry in value.items()
                }
            row[field.name] = list(value) if isinstance(value, tuple) else value
        return row

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "EvalReport":
        """The report that `to_json` wrote."""
        values = dict(row)
        for name in ("pass_at", "maj_at"):
            values[name] = {int(k): value for k, value in row[name].items()}
            interval = f"{name}_interval"
            values[interval] = {int(k): tuple(span) for k, span in row[interval].items()}
        values["greedy_interval"] = tuple(row["greedy_interval"])
        return EvalReport(**values)

    def metrics(self) -> dict[str, float]:
        """The report under the names of `METRICS`, for `metrics.jsonl`."""
        named = {
            "eval/greedy_accuracy": (self.greedy_accuracy, self.greedy_interval),
            **{f"eval/pass@{k}": (v, self.pass_at_interval[k]) for k, v in self.pass_at.items()},
            **{f"eval/maj@{k}": (v, self.maj_at_interval[k]) for k, v in self.maj_at.items()},
        }
        metrics = {"eval/length_mean": self.length_mean, "eval/finished_rate": self.finished_rate}
        if self.format_rate is not None:
            metrics["eval/format_rate"] = self.format_rate
        for name, (value, (low, high)) in named.items():
            metrics |= {name: value, f"{name}_low": low, f"{name}_high": high}
        return metrics


def evaluation_report(
    *,
    greedy_correct: Bool[np.ndarray, " P"],
    greedy_length: Int[np.ndarray, " P"],
    greedy_finished: Bool[np.ndarray, " P"],
    greedy_format: Bool[np.ndarray, " P"] | None = None,
    sampled_correct: Bool[np.ndarray, "P N"] | None = None,
    sampled_answers: Sequence[Sequence[str | None]] | None = None,
    references: Sequence[str] | None = None,
    seed: int,
) -> EvalReport:
    """Makes the report of an evaluation from what was seen on each prompt.

    Args:
      greedy_correct: whether the greedy completion is correct.
      greedy_length: its tokens, EOS included.
      greedy_finished: whether it ended itself.
      greedy_format: whether it has the task's format; None if the task has none.
      sampled_correct: whether each sampled completion is correct; None if none were sampled.
      sampled_answers: the answer read from each sampled completion, P rows of N, None where
        there is none; left out if the task's answers cannot be compared as text.
      references: the reference answers in the same normal form; needed with `sampled_answers`.
      seed: names the bootstrap's noise.

    Returns:
      The report, with pass@k for k = 1, 2, 4, ... and N, and maj@N.

    Raises:
      ValueError: if there are no prompts, or answers without references.
    """
    if len(greedy_correct) == 0:
        raise ValueError("an evaluation needs at least one held-out prompt, got none")
    if sampled_answers is not None and references is None:
        raise ValueError("sampled_answers were given without references to compare them with")
    num_samples = 0 if sampled_correct is None else sampled_correct.shape[1]
    greedy = greedy_correct.astype(np.float64)
    passed: dict[int, np.ndarray] = {}
    majority: dict[int, np.ndarray] = {}
    if sampled_correct is not None:
        passed = {k: pass_at_k(sampled_correct, k) for k in _ks(num_samples)}
    if sampled_answers is not None and references is not None and num_samples:
        majority = {num_samples: majority_accuracy(sampled_answers, references)}
    return EvalReport(
        num_prompts=len(greedy),
        samples_per_prompt=num_samples,
        greedy_accuracy=float(greedy.mean()),
        greedy_interval=bootstrap_interval(greedy, seed),
        pass_at={k: float(values.mean()) for k, values in passed.items()},
        pass_at_interval={k: bootstrap_interval(values, seed) for k, values in passed.items()},
        maj_at={k: float(values.mean()) for k, values in majority.items()},
        maj_at_interval={k: bootstrap_interval(values, seed) for k, values in majority.items()},
        length_mean=float(greedy_length.mean()),
        finished_rate=float(greedy_finished.mean()),
        format_rate=None if greedy_format is None else float(greedy_format.mean()),
    )


def pass_at_k(correct: Bool[np.ndarray, "P N"], k: int) -> Float[np.ndarray, " P"]:
    """Estimates, per prompt, the chance that at least one of k samples is correct.

    With c of n samples correct it is 1 - C(n - c, k) / C(n, k): the share of all subsets of k
    samples that hold a correct one, which is unbiased.

    Args:
      correct: whether each sampled completion is correct.
      k: size of the subsets, 1 to N.

    Returns:
      The estimate of each prompt, in 0..1; pass@k is their mean.

    Raises:
      ValueError: if k is not in 1..N.

    Example:
      >>> pass_at_k(np.array([[True, False, False, False]]), k=2)
      array([0.5])

    References:
      Chen et al., arXiv:2107.03374, equation 1. Departs: none.
    """
    num_samples = correct.shape[1]
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be in 1..{num_samples} (the samples per prompt), got {k}")
    wrong_P = num_samples - correct.sum(axis=1)
    drawn_K = np.arange(k)
    # C(wrong, k) / C(n, k) as a product of k fractions: no factorial overflows.
    none_correct_PK = np.maximum(wrong_P[:, None] - drawn_K, 0) / (num_samples - drawn_K)
    return 1.0 - none_correct_PK.prod(axis=1)


def majority_accuracy(
    answers: Sequence[Sequence[str | None]], references: Sequence[str]
) -> Float[np.ndarray, " P"]:
    """Scores, per prompt, the most frequent answer of its samples.

    Args:
      answers: P rows of N answers in normal form; None where a completion has no answer, which
        does not vote.
      references: the P reference answers in the same form.

    Returns:
      1 where the most frequent answer is the reference, 0 where it is not; where m answers share
      the first place, 1/m if the reference is one of them. maj@N is the mean.

    Raises:
      ValueError: if the numbers of prompts differ.

    Example:
      >>> majority_accuracy([["7", "7", "3"], ["1", "2", None]], ["7", "2"])
      array([1. , 0.5])
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} rows of answers but {len(references)} references")
    scores: list[float] = []
    for row, reference in zip(answers, references, strict=True):
        votes = collections.Counter(answer for answer in row if answer is not None)
        most = max(votes.values(), default=0)
        first = [answer for answer, count in votes.items() if count == most]
        scores.append(1.0 / len(first) if reference in first else 0.0)
    return np.array(scores, np.float64)


def bootstrap_interval(
    values: Float[np.ndarray, " P"], seed: int, *, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """The percentile bootstrap interval of a mean over prompts.

    Args:
      values: one score per prompt.
      seed: names the noise; the same values and seed give the same interval.
      resamples: how often P prompts are drawn with replacement.
      level: probability mass between the two ends, 0 to 1 exclusive.

    Returns:
      The lower and the upper end, in the unit of the values.

    Raises:
      ValueError: if there are no values.

    References:
      Efron (1979), doi:10.1214/aos/1176344552. Departs: none.
    """
    if len(values) == 0:
        raise ValueError("a bootstrap interval needs at least one value, got none")
    noise = np.random.default_rng(seed)
    means = [values[noise.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def _ks(num_samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself."""
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
    return sorted({*powers, num_samples} - {0})
