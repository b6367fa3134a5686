"""A method as data: one choice per slot, and the constants those choices read.

A `Method` is plain and hashable, so it can be closed over by a jitted function and stands in the
run's configuration as it is. The functions that the names stand for are in the slot modules
(`shaping`, `baselines`, `scales`, `combining`, `posts`, `levels`, `trust`, `vetoes`, `weights`,
`penalties`, `constraints`, `late`, `trackers`, `sampling`, `allocation`), whose tables have exactly
the names of `SLOTS`.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, TypeAlias

from annotated_types import Ge, Le

from jgrpo.algo import checks
from jgrpo.algo.checks import Declared

Constant: TypeAlias = str | int | float | tuple[float, ...] | list[float]
NonNegativeInt: TypeAlias = Annotated[int, Ge(0)]
NonNegativeFloat: TypeAlias = Annotated[float, Ge(0.0)]
Fraction: TypeAlias = Annotated[float, Ge(0.0), Le(1.0)]

# Names that each slot accepts, besides `package.module:function`.
SLOTS: Mapping[str, tuple[str, ...]] = {
    "shape": (
        *("none", "overlong", "weighted_sum", "column_mean", "unlikeliness", "squash"),
        *("outcome_weight", "rubric", "rubric_raw", "unit_range", "suffix_dcg"),
    ),
    "base": (
        *("none", "group_mean", "leave_one_out", "group_median", "length_weighted", "batch_mean"),
        *("stratum_mean", "virtual_mean", "sampled_mean", "tracker", "prior"),
    ),
    "scale": (
        *("none", "group_std", "group_mad", "batch_std", "stratum_std", "virtual_std"),
        *("sampled_std", "beta_density"),
    ),
    "combine": ("none", "sum", "mean", "multipliers", "keep"),
    "post": (
        *("none", "batch_zscore", "token_whiten", "returns", "gae", "blend_group", "drop_pivot"),
        *("drop_pivot_rescaled", "novelty", "anchor", "imitate", "prefix_td", "items"),
    ),
    "level": (
        *("token", "sequence", "sequence_token", "segment", "prefix_sum", "prefix_mean"),
        "sequence_sum",
    ),
    "trust": ("clip", "cispo", "linear", "gmpo", "sapo", "vespo", "ctpo"),
    "veto": ("none", "suffix", "off_policy_row", "is_token", "is_mask", "is_sequence"),
    "weights": (
        *("token_mean", "sequence_mean", "sequence_sum", "constant_length", "token_sum"),
        *("sequence_mean_all", "sequence_sum_constant"),
    ),
    "penalty": ("none", "k1", "k2", "k3", "k3_plus"),
    "kl_in": ("loss", "reward", "token_reward"),
    "bonus": ("none", "entropy"),
    "constraint": ("none", "hinge_k1", "hinge_k3"),
    "late": ("none", *checks.COUPLED),
    "tracker": ("none", "beta", "success", "multipliers"),
    "sampler": ("uniform", "dynamic", "unsolved"),
    "allocate": ("uniform", "knapsack", "v0", "v0_exact", "v0_5"),
    "source": ("policy", "reference", "both"),
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
    """Reward transform before the group statistics; `overlong` is a soft length penalty."""
    base: str = "group_mean"
    """What is subtracted from a reward, such as `group_mean` or `leave_one_out`."""
    scale: str = "group_std"
    """What the difference is divided by, such as `group_std`; `none` divides by nothing."""
    combine: str = "none"
    """How K reward columns, normalised one by one, become one advantage."""
    post: str = "none"
    """Transform of the finished advantages: whitening, token credit, dropped rows."""
    level: str = "token"
    """Unit of the importance ratio: `token`, `sequence`, `segment`, a prefix."""
    trust: str = "clip"
    """Trust region around the old policy, such as `clip`, `cispo`, `sapo`; `linear` is none."""
    veto: str = "none"
    """Factor without gradient on the policy term: dropped tokens, sampler mismatch."""
    weights: str = "sequence_mean"
    """How tokens add up: `token_mean`, `sequence_mean`, `sequence_sum`, `constant_length`."""
    penalty: str = "none"
    """Estimator of the KL divergence to the reference policy: `k1`, `k2`, `k3`."""
    kl_in: str = "loss"
    """Where the penalty acts: the `loss`, the `reward` or each `token_reward` (k1 only)."""
    bonus: str = "none"
    """What is rewarded in the loss besides the advantage: `entropy`."""
    constraint: str = "none"
    """Squared-hinge bound on the drift from the old policy, one scalar a batch."""
    late: str = "none"
    """Loss that couples the completions of a group, turned into token advantages."""
    tracker: str = "none"
    """State kept from step to step: prompt values, success rates, multipliers."""
    clip_low: Fraction = 0.2
    """Ratios below 1 - clip_low are clipped; 1 means no lower bound."""
    clip_high: NonNegativeFloat = 0.2
    """Ratios above 1 + clip_high are clipped."""
    dual_clip: NonNegativeFloat = 0.0
    """Ratio beyond which negative advantages stop pushing (above 1 + clip_high); 0 turns it off."""
    cliprange: NonNegativeFloat = 0.4
    """GMPO: bound on token log-ratios, on both sides, in nats."""
    tau_pos: NonNegativeFloat = 1.0
    """SAPO: steepness of the gate for positive advantages."""
    tau_neg: NonNegativeFloat = 1.05
    """SAPO: steepness of the gate for negative advantages."""
    vespo_k_pos: NonNegativeFloat = 2.0
    """VESPO: power of the sequence ratio where the advantage is not negative."""
    vespo_lambda_pos: NonNegativeFloat = 3.0
    """VESPO: decay of the gate where the advantage is not negative."""
    vespo_k_neg: NonNegativeFloat = 3.0
    """VESPO: power of the sequence ratio for negative advantages."""
    vespo_lambda_neg: NonNegativeFloat = 2.0
    """VESPO: decay of the gate for negative advantages."""
    la_clip_low: NonNegativeFloat = 0.025
    """CTPO: lower log bound of the first token, in nats."""
    la_clip_high: NonNegativeFloat = 0.05
    """CTPO: upper log bound of the first token, in nats."""
    la_clip_c: NonNegativeFloat = 0.05
    """CTPO: log of the dual clip of the first token, in nats."""
    clip_ratio_la_power: float = 0.5
    """CTPO: power of the position with which its log bounds grow."""
    trigger_low: NonNegativeFloat = 0.75
    """Suffix veto: token ratios below it trigger; 0 turns it off."""
    trigger_high: NonNegativeFloat = 0.0
    """Suffix veto: token ratios above it trigger; 0 turns it off."""
    is_low: NonNegativeFloat = 0.0
    """Lower bound of the ratio of old policy to sampler in `is_*` vetoes."""
    is_high: NonNegativeFloat = 2.0
    """Upper bound of the ratio of old policy to sampler in `is_*` vetoes."""
    off_policy_delta: NonNegativeFloat = 0.1
    """Mean nats a token may lose before `off_policy_row` drops a bad completion."""
    kl_coef: NonNegativeFloat = 0.0
    """Weight of the KL penalty; at 0 no reference policy is needed."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus, per nat."""
    constraint_delta: NonNegativeFloat = 1e-4
    """Drift from the old policy that is free, in nats per token."""
    constraint_beta: NonNegativeFloat = 1e3
    """Weight of the squared hinge on drift beyond it."""
    scale_eps: NonNegativeFloat = 1e-6
    """Added to the deviation, outside the root, in reward units."""
    scale_ddof: Annotated[int, Ge(0), Le(1)] = 1
    """1: the standard deviation divides by G - 1 (sample); 0: by G (population)."""
    post_eps: NonNegativeFloat = 1e-8
    """Added to the deviation over the batch (inside the root for tokens)."""
    reward_weights: tuple[float, ...] = ()
    """Factor of each reward column; empty: all 1."""
    min_value: float = 0.0
    """Lowest reward there is, for `unit_range`."""
    max_value: float = 1.0
    """Highest reward there is, for `unit_range`."""
    max_reward: float = 1.0
    """Reward of a perfect completion, for virtual rows and the `unsolved` sampler."""
    add_max_reward_num: NonNegativeInt = 1
    """Virtual completions of reward max_reward in the group statistics."""
    prior_noise: NonNegativeFloat = 1.0
    """Variance of one reward around its mean: 1 for -1 and 1, 0.25 for 0 and 1."""
    stratum_blend: Fraction = 0.5
    """Share of the stratum's advantage; the rest is the group's."""
    rank_penalty: Fraction = 0.25
    """Unlikeliness: part of the reward that the likeliest completion loses."""
    rubric_reward_ratio: Fraction = 0.3
    """Part of a correct answer's reward that its rubric score decides."""
    lambda_neg: NonNegativeFloat = 1.0
    """Reward of a failure, negated, for `outcome_weight`."""
    squash_tau: float = 0.8
    """Reward at which `squash` turns from spreading to compressing."""
    squash_alpha_high: NonNegativeFloat = 0.01
    """Slope of `squash` above its turning point."""
    squash_alpha_low: NonNegativeFloat = 1.0
    """Curvature of `squash` below its turning point."""
    anchor_factor: NonNegativeFloat = 1.2
    """Advantage of a reference row, in units of the group's largest."""
    imitation_coef: NonNegativeFloat = 0.5
    """GRAO: weight of the reference row's advantage."""
    alignment_coef: NonNegativeFloat = 0.6
    """GRAO: weight of the alignment term, which scales sampled rows."""
    novelty_coef: NonNegativeFloat = 2.5
    """XRPO: weight of the novelty of a correct completion."""
    novelty_clip: NonNegativeFloat = 0.5
    """XRPO: largest bonus, as a part of the advantage."""
    gamma: Fraction = 1.0
    """Discount of later rewards, per token."""
    gae_lambda: Fraction = 0.95
    """Decay of later value errors, per token."""
    score_tau: NonNegativeFloat = 10.0
    """DisCO, DRPO: temperature over the scores of wrong completions."""
    length_lambda: NonNegativeFloat = 0.1
    """DRPO: temperature over the length rewards of correct completions."""
    length_limit_tokens: NonNegativeInt = 8192
    """DRPO: length at which the length reward is 0."""
    rho_min: Fraction = 0.875
    """Least memory of the beta tracker; also fixes its initial size."""
    rho_max: Fraction = 0.96
    """Greatest memory of the beta tracker."""
    half_drift: NonNegativeFloat = 0.06
    """Drift in nats per token at which the tracker halves its memory."""
    dual_lr: NonNegativeFloat = 0.05
    """Step of the multipliers."""
    dual_max: NonNegativeFloat = 5.0
    """Largest multiplier."""
    dual_init: NonNegativeFloat = 1.0
    """Multipliers at the start."""
    dual_thresholds: tuple[float, ...] = ()
    """Mean that each constrained reward column must reach."""
    dual_min_samples: NonNegativeInt = 8
    """Applicable completions below which a multiplier rests."""
    constant_length_tokens: NonNegativeInt = 0
    """Divisor L of `constant_length` weights; must be set with them and never follows an array."""
    overlong_buffer_tokens: NonNegativeInt = 0
    """Tokens before the length limit over which the `overlong` penalty grows to its full size."""
    overlong_penalty: NonNegativeFloat = 1.0
    """Largest `overlong` penalty, in reward units."""
    sampler: str = "uniform"
    """Which groups train: all (`uniform`), those of mixed outcome (`dynamic`), the `unsolved`."""
    dynamic_max_rounds: Annotated[int, Ge(1)] = 10
    """Most sampling rounds of a step with the `dynamic` or `unsolved` sampler."""
    allocate: str = "uniform"
    """How many completions each prompt gets: the same, or by a rule."""
    rollouts_min: NonNegativeInt = 2
    """Least completions a rule gives a prompt."""
    rollouts_max: NonNegativeInt = 128
    """Most completions a rule gives a prompt."""
    rollout_cost: NonNegativeFloat = 0.00390625
    """V0.5: error that one more completion must save."""
    source: str = "policy"
    """Who writes completions: the `policy`, the data's solutions (`reference`), or `both`."""
    paper: str = ""
    """Where the method was published."""
    evidence: str = ""
    """How the formula was verified: official code executed or read, or the paper alone."""
    departs: str = ""
    """Where this computation differs from the paper, and constants the paper does not give."""
    summary: str = ""
    """One sentence on what the method is for."""

    def __post_init__(self) -> None:
        for field, kind in FIELDS.items():
            if kind.kind is tuple and isinstance(value := getattr(self, field), list):
                object.__setattr__(self, field, tuple(value))
        refuse_problems(self.name, {field: getattr(self, field) for field in FIELDS})


FIELDS: Mapping[str, Declared] = {
    field: checks.declared(hint)
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
    return checks.problems(values, FIELDS, SLOTS)


def refuse_problems(name: str, values: Mapping[str, object]) -> None:
    """Raises a ValueError that lists every problem of the values, if there is one."""
    found = field_problems(values)
    if found:
        listed = "; ".join(f"{field}: {problem}" for field, problem in found.items())
        raise ValueError(f"method {name!r}: {listed}")
