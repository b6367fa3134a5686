"""The methods: one row per name, one choice per slot, and the constants those choices read.

A `Method` is plain, hashable data, so it can be closed over by a jitted function and stands in the
run's configuration as it is. Only the standard library is used here; the functions that the names
stand for are in the slot modules (`shaping`, `advantages`, `levels`, `trust`, `weights`,
`penalties`, `sampling`), whose tables have exactly the names of `SLOTS`.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeAlias

from annotated_types import Ge, Le

Constant: TypeAlias = str | int | float
NonNegativeInt: TypeAlias = Annotated[int, Ge(0)]
NonNegativeFloat: TypeAlias = Annotated[float, Ge(0.0)]

# Names that each slot accepts.
SLOTS: Mapping[str, tuple[str, ...]] = {
    "shape": ("none", "overlong"),
    "base": ("none", "group_mean", "leave_one_out"),
    "scale": ("none", "group_std"),
    "post": ("none",),
    "level": ("token", "sequence", "sequence_token"),
    "trust": ("clip", "cispo", "linear"),
    "weights": ("token_mean", "sequence_mean", "sequence_sum", "constant_length"),
    "penalty": ("none", "k1", "k2", "k3"),
    "kl_in": ("loss", "reward"),
    "sampler": ("uniform", "dynamic"),
    "source": ("policy", "reference"),
}
TEXTS = ("name", "paper", "evidence", "departs", "summary")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A composition of slot functions and their constants. Invalid ones cannot be built.

    Raises:
      ValueError: naming every field that is out of range, of the wrong type, or at odds with
        another one; also from `dataclasses.replace`.
    """

    name: str
    """Name of the row this method is, or was made from."""
    shape: str = "none"
    """Reward transform before the group statistics: `none` or `overlong` (soft length penalty)."""
    base: str = "group_mean"
    """What is subtracted from a reward: `none`, `group_mean` or `leave_one_out`."""
    scale: str = "group_std"
    """What the difference is divided by: `none` or `group_std`."""
    post: str = "none"
    """Transform of the finished advantages: `none`."""
    level: str = "token"
    """Unit of the importance ratio: `token`, `sequence` or `sequence_token` (token gradients)."""
    trust: str = "clip"
    """Trust region around the old policy: `clip`, `cispo` (clipped weight) or `linear` (none)."""
    weights: str = "sequence_mean"
    """How tokens add up: `token_mean`, `sequence_mean`, `sequence_sum` or `constant_length`."""
    penalty: str = "none"
    """Estimator of the KL divergence to the reference policy: `none`, `k1`, `k2` or `k3`."""
    kl_in: str = "loss"
    """Where the penalty acts: in the `loss`, or subtracted from the `reward` (k1 only)."""
    clip_low: Annotated[float, Ge(0.0), Le(1.0)] = 0.2
    """Ratios below 1 - clip_low are clipped; 1 means no lower bound."""
    clip_high: NonNegativeFloat = 0.2
    """Ratios above 1 + clip_high are clipped."""
    dual_clip: NonNegativeFloat = 0.0
    """Ratio beyond which negative advantages stop pushing (above 1 + clip_high); 0 turns it off."""
    kl_coef: NonNegativeFloat = 0.0
    """Weight of the KL penalty; at 0 no reference policy is needed."""
    scale_eps: NonNegativeFloat = 1e-6
    """Added to the standard deviation, outside the root, in reward units."""
    scale_ddof: Annotated[int, Ge(0), Le(1)] = 1
    """1: the standard deviation divides by G - 1 (sample); 0: by G (population)."""
    constant_length_tokens: NonNegativeInt = 0
    """Divisor L of `constant_length` weights; must be set with them and never follows an array."""
    overlong_buffer_tokens: NonNegativeInt = 0
    """Tokens before the length limit over which the `overlong` penalty grows to its full size."""
    overlong_penalty: NonNegativeFloat = 1.0
    """Largest `overlong` penalty, in reward units."""
    sampler: str = "uniform"
    """Which groups train: all (`uniform`), or those of mixed outcome, refilled (`dynamic`)."""
    dynamic_max_rounds: Annotated[int, Ge(1)] = 10
    """Most sampling rounds of a step with the `dynamic` sampler."""
    source: str = "policy"
    """Who writes completions: the `policy`, or the data's worked solutions (`reference`)."""
    paper: str = ""
    """Where the method was published."""
    evidence: str = ""
    """How the formula was verified: official code executed or read, or the paper alone."""
    departs: str = ""
    """Where this computation differs from the paper, and constants the paper does not give."""
    summary: str = ""
    """One sentence on what the method is for."""

    def __post_init__(self) -> None:
        _refuse_problems(self.name, {field: getattr(self, field) for field in FIELDS})


class _Declared(typing.NamedTuple):
    kind: type
    lowest: Any
    highest: Any


def _declared(hint: Any) -> _Declared:
    """Type and range of a field, read off its annotation."""
    if typing.get_origin(hint) is not Annotated:
        return _Declared(hint, -math.inf, math.inf)
    kind, *marks = typing.get_args(hint)
    lowest, highest = -math.inf, math.inf
    for mark in marks:
        lowest = mark.ge if isinstance(mark, Ge) else lowest
        highest = mark.le if isinstance(mark, Le) else highest
    return _Declared(kind, lowest, highest)


FIELDS: Mapping[str, _Declared] = {
    field: _declared(hint)
    for field, hint in typing.get_type_hints(Method, include_extras=True).items()
}
SETTINGS: tuple[str, ...] = tuple(field for field in FIELDS if field not in TEXTS)


def field_problems(values: Mapping[str, object]) -> dict[str, str]:
    """What is wrong with values meant for the fields of a `Method`.

    Args:
      values: any of the fields; rules that relate fields apply to those that are present.

    Returns:
      One message per faulty field (or unknown key); empty if all is well.
    """
    problems = {}
    for field, value in values.items():
        if field not in FIELDS:
            problems[field] = f"unknown field{_suggestion(field, FIELDS)}"
        elif problem := _value_problem(field, value):
            problems[field] = problem
    for field, problem in _relation_problems(values).items():
        problems.setdefault(field, problem)
    return problems


def _refuse_problems(name: str, values: Mapping[str, object]) -> None:
    problems = field_problems(values)
    if problems:
        listed = "; ".join(f"{field}: {problem}" for field, problem in problems.items())
        raise ValueError(f"method {name!r}: {listed}")


def _value_problem(field: str, value: object) -> str | None:
    kind, lowest, highest = FIELDS[field]
    accepted = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) or not isinstance(value, accepted):
        wanted = {int: "an integer", float: "a number", str: "text"}[kind]
        return f"must be {wanted}, got {value!r}"
    if field in SLOTS and value not in SLOTS[field]:
        return f"unknown {value!r}{_suggestion(str(value), SLOTS[field])}"
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return f"must be finite, got {value}"
        if value < lowest:
            return f"must be at least {lowest}, got {value}"
        if value > highest:
            return f"must be at most {highest}, got {value}"
    return None


def _relation_problems(values: Mapping[str, object]) -> dict[str, str]:
    def is_set(field: str, choice: str) -> bool:
        return values.get(field) == choice

    problems = {}
    if is_set("weights", "constant_length") and values.get("constant_length_tokens") == 0:
        problems["constant_length_tokens"] = (
            "must be at least 1 with weights 'constant_length', got 0; "
            "set it to the longest completion you allow"
        )
    if is_set("shape", "overlong") and values.get("overlong_buffer_tokens") == 0:
        problems["overlong_buffer_tokens"] = (
            "must be at least 1 with shape 'overlong', got 0; "
            "a fifth of the longest completion is usual"
        )
    if is_set("kl_in", "reward") and values.get("penalty") in ("k2", "k3"):
        problems["penalty"] = (
            f"must be 'k1' or 'none' with kl_in 'reward', got {values['penalty']!r}"
        )
    dual, high = values.get("dual_clip"), values.get("clip_high")
    if isinstance(dual, int | float) and isinstance(high, int | float) and 0 < dual <= 1 + high:
        problems["dual_clip"] = f"must be 0 (off) or above 1 + clip_high = {1 + high}, got {dual}"
    return problems


def _suggestion(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{guess} (known: {', '.join(names)})"


def method(name: str, /, **overrides: Constant) -> Method:
    """A row of the table, with slots or constants changed.

    Args:
      name: a key of `METHODS`.
      **overrides: fields of `Method` except its texts. Values that differ from the row's are added
        to `departs`, so that a log never shows the paper's name without them.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown name or field, or a value out of range, saying what exists.

    Example:
      >>> method("gspo", clip_low=1e-3).clip_low
      0.001
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{_suggestion(name, METHODS)}")
    row = METHODS[name]
    for field in overrides:
        if field not in SETTINGS:
            raise ValueError(
                f"method {name!r}: unknown field {field!r}{_suggestion(field, SETTINGS)}"
            )
    _refuse_problems(name, dataclasses.asdict(row) | overrides)
    changed = {f: value for f, value in overrides.items() if value != getattr(row, f)}
    listed = ", ".join(f"{f}={value!r} (row: {getattr(row, f)!r})" for f, value in changed.items())
    departs = f"{row.departs} Overridden: {listed}." if changed else row.departs
    kinds = {f: FIELDS[f].kind(value) for f, value in overrides.items()}
    return dataclasses.replace(row, **kinds, departs=departs)


# Constants and evidence are those of the papers and of the code their authors (or verl and TRL)
# published; "executed" means that formula and code gave the same loss and gradient.
METHODS: Mapping[str, Method] = {
    "grpo": Method(
        name="grpo",
        base="group_mean",
        scale="group_std",
        level="token",
        trust="clip",
        weights="sequence_mean",
        penalty="k3",
        clip_low=0.2,
        clip_high=0.2,
        kl_coef=0.04,
        paper="DeepSeekMath, arXiv:2402.03300",
        evidence="executed against verl compute_grpo_outcome_advantage and "
        "compute_policy_loss_vanilla; TRL read",
        departs="The paper gives no number for the clip range (0.2 is that of public code) and "
        "does not say how the standard deviation is taken (ours: G - 1, plus 1e-6). Outcome "
        "rewards only. Empty completions do not count in the mean over sequences.",
        summary="Compares each completion with the others of its prompt, so no value network is "
        "needed.",
    ),
    "dr_grpo": Method(
        name="dr_grpo",
        base="group_mean",
        scale="none",
        level="token",
        trust="clip",
        weights="constant_length",
        penalty="none",
        clip_low=0.2,
        clip_high=0.2,
        constant_length_tokens=3000,
        paper="Understanding R1-Zero-like training, arXiv:2503.20783",
        evidence="executed against verl (norm_adv_by_std_in_grpo=False); authors' "
        "understand-r1-zero read",
        departs="None. The divisor 3000 is the authors' generation limit: set "
        "constant_length_tokens to yours.",
        summary="GRPO without the division by the standard deviation and by the length, which bias "
        "it by difficulty and length.",
    ),
    "dapo": Method(
        name="dapo",
        shape="overlong",
        base="group_mean",
        scale="group_std",
        level="token",
        trust="clip",
        weights="token_mean",
        penalty="none",
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=10.0,
        overlong_buffer_tokens=4096,
        overlong_penalty=1.0,
        sampler="dynamic",
        dynamic_max_rounds=10,
        paper="DAPO, arXiv:2503.14476",
        evidence="loss executed against verl compute_policy_loss_vanilla; sampling and length "
        "penalty read in verl-recipe dapo",
        departs="The dual clip at 10 is the authors' script, not the paper. The paper's rewards "
        "are -1 and 1 (with 0 and 1 the length penalty weighs twice as much) and its length limit "
        "is 20480: set overlong_buffer_tokens to fit yours.",
        summary="GRPO for long reasoning: more room upwards, token mean, mixed groups only, soft "
        "length limit.",
    ),
    "cispo": Method(
        name="cispo",
        shape="overlong",
        base="group_mean",
        scale="group_std",
        level="token",
        trust="cispo",
        weights="token_mean",
        penalty="none",
        clip_low=1.0,
        clip_high=4.0,
        overlong_buffer_tokens=4096,
        overlong_penalty=1.0,
        sampler="dynamic",
        dynamic_max_rounds=10,
        paper="MiniMax-M1, arXiv:2506.13585",
        evidence="loss executed against verl compute_policy_loss_cispo; TRL and paper read",
        departs="The upper bound is not published: 1 + clip_high = 5 is the cap of the ScaleRL "
        "recipe in TRL (which writes it as an absolute 5.0). Sampling and length penalty have "
        "DAPO's constants.",
        summary="Clips the importance weight instead of the update: no token loses its gradient.",
    ),
    "gspo": Method(
        name="gspo",
        base="group_mean",
        scale="group_std",
        level="sequence",
        trust="clip",
        weights="sequence_mean",
        penalty="none",
        clip_low=3e-4,
        clip_high=4e-4,
        paper="GSPO, arXiv:2507.18071",
        evidence="paper read; TRL importance_sampling_level='sequence' read; equal to gspo_token, "
        "which was executed",
        departs="None. The paper does not say how the standard deviation is taken (ours: G - 1, "
        "plus 1e-6).",
        summary="Importance ratio and clipping per sequence, the unit that is rewarded.",
    ),
    "gspo_token": Method(
        name="gspo_token",
        base="group_mean",
        scale="group_std",
        level="sequence_token",
        trust="clip",
        weights="sequence_mean",
        penalty="none",
        clip_low=3e-4,
        clip_high=4e-4,
        paper="GSPO, arXiv:2507.18071",
        evidence="executed against verl compute_policy_loss_gspo",
        departs="verl also caps the log-ratio at 10; ours is bounded by the clamp of token "
        "log-ratios to [-20, 20].",
        summary="GSPO whose advantages may differ between tokens; equals gspo when they do not.",
    ),
    "rloo": Method(
        name="rloo",
        base="leave_one_out",
        scale="none",
        level="token",
        trust="linear",
        weights="sequence_sum",
        penalty="k1",
        kl_in="reward",
        kl_coef=0.03,
        paper="Back to Basics (RLOO), arXiv:2402.14740",
        evidence="baseline executed against verl compute_rloo_outcome_advantage; TRL read",
        departs="kl_coef is TRL's. A group of one gets 0 (verl: the raw reward).",
        summary="REINFORCE with the mean of the other completions as an unbiased baseline.",
    ),
    "sft": Method(
        name="sft",
        base="none",
        scale="none",
        level="token",
        trust="linear",
        weights="token_mean",
        penalty="none",
        source="reference",
        paper="maximum likelihood; no paper",
        evidence="own derivation: with advantage 1 the loss is the mean negative log-likelihood",
        departs="None. Give reward 1 to every reference solution; another reward weighs its "
        "likelihood.",
        summary="Supervised warm start on the data's worked solutions, in the same algebra.",
    ),
}
