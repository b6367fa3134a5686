"""A method as data: one choice per slot, and the constants those choices read.

A `Method` is plain and hashable, so it can be closed over by a jitted function and stands in the
run's configuration as it is. The functions that the names stand for are in the tables of the slot
modules (`slots.TABLES`), which have exactly the names of `SLOTS`.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, TypeAlias

from annotated_types import Ge, Le

from jgrpo.algo import checks
from jgrpo.algo.checks import Declared
from jgrpo.algo.names import SLOTS

Constant: TypeAlias = str | int | float | tuple[float, ...] | list[float]
NonNegativeInt: TypeAlias = Annotated[int, Ge(0)]
NonNegativeFloat: TypeAlias = Annotated[float, Ge(0.0)]
Fraction: TypeAlias = Annotated[float, Ge(0.0), Le(1.0)]

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
    reshape: str = "none"
    """What becomes of the ratio where another law drew: a hint's, or a worked solution's."""
    veto: str = "none"
    """Tokens or completions taken out of the policy term, without gradient."""
    correction: str = "none"
    """Factor without gradient on the policy term: ratio of the old policy to the sampler."""
    weights: str = "sequence_mean"
    """How tokens add up: `token_mean`, `sequence_mean`, `sequence_sum`, `constant_length`."""
    penalty: str = "none"
    """Estimator of the KL divergence to the reference policy: `k1`, `k2`, `k3`."""
    kl_in: str = "loss"
    """Where the penalty acts: the `loss`, the `reward` or each `token_reward`."""
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
    """Lower bound of the ratio of old policy to sampler in `is_*` corrections."""
    is_high: NonNegativeFloat = 2.0
    """Upper bound of the ratio of old policy to sampler in `is_*` corrections."""
    off_policy_delta: NonNegativeFloat = 0.1
    """Mean nats a token may lose before `off_policy_row` drops a bad completion."""
    top_entropy_quantile: Fraction = 0.2
    """Share of the tokens, those of the highest entropy, that `top_entropy` trains."""
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
    """Lowest reward there is, for `unit_range` and success rates."""
    max_value: float = 1.0
    """Highest reward there is, for `unit_range` and success rates."""
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
    value_coef: NonNegativeFloat = 0.1
    """Weight of the critic's loss beside the policy's."""
    value_clip: NonNegativeFloat = 0.2
    """Reward units that a value may move from its old one in a step; 0: no bound."""
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
    allocation_phases: Annotated[int, Ge(1)] = 3
    """XRPO: parts in which the completions beyond the first ones are given out."""
    allocation_bonus: NonNegativeFloat = 0.1
    """XRPO: weight of having been asked little, in reward units."""
    confidence_alpha: Fraction = 0.05
    """XRPO: chance that a mean reward lies outside of its confidence interval."""
    source: str = "policy"
    """Who writes completions: the `policy`, the data's solutions (`reference`), or `both`."""
    plan: str = "uniform"
    """What a step asks: whole groups, beginnings or hints for some, or several rounds."""
    guidance: str = "adaptive"
    """How long guidance is from step to step: `adaptive`, `linear` or `constant`."""
    control: str = "constant"
    """Sampling temperature from step to step: `rollout.temperature`, or raised by `diversity`."""
    temperature_stages: tuple[float, ...] = (0.8, 1.0, 1.2)
    """Temperatures that it rises to one by one; those above `rollout.temperature` count."""
    temperature_every_steps: Annotated[int, Ge(1)] = 50
    """Steps between two such decisions."""
    diversity_target: Fraction = 0.5
    """Share of different n-grams among a prompt's completions below which it rises."""
    diversity_gram: Annotated[int, Ge(1)] = 4
    """n of these n-grams, in tokens."""
    aux: str = "none"
    """What is trained in place of the policy: nothing, or a `preference` model that reads it."""
    guided_rows: NonNegativeInt = 2
    """Completions of a group that are guided; 0 guides none."""
    guidance_tokens: NonNegativeInt = 3072
    """Tokens of guidance at the first step."""
    guidance_max_tokens: NonNegativeInt = 3072
    """Most tokens of adaptive guidance."""
    guidance_end_tokens: NonNegativeInt = 0
    """Tokens of linear guidance at the last step."""
    budget_start_tokens: NonNegativeInt = 256
    """Length budget of the first steps, in tokens."""
    budget_decay: Fraction = 0.7
    """What the length budget is multiplied by, again and again."""
    budget_every_steps: Annotated[int, Ge(1)] = 150
    """Steps between two such cuts."""
    correct_weight: NonNegativeFloat = 0.6
    """Budgeted rewards and `format_gate`: weight of success."""
    length_weight: NonNegativeFloat = 0.3
    """Budgeted rewards: weight of the length reward."""
    format_weight: NonNegativeFloat = 0.1
    """Budgeted rewards and `format_gate`: weight of the format."""
    switch_share: Fraction = 0.2
    """GRPO-lambda: share of the prompts, the best solved, whose length is fined."""
    length_alpha: Fraction = 0.2
    """GRPO-lambda: largest fine for length, in reward units."""
    length_peak: Annotated[float, Ge(0.01), Le(0.99)] = 0.5
    """Surrogate reward: the best length, as a share of the longest completion."""
    loss_on_injected: Fraction = 1.0
    """Weight in the loss of tokens that the policy did not draw; 0 takes them out of the mask."""
    unsolved_at: float = 0.0
    """A group is unsolved if none of its rewards is above this."""
    hint_levels: Annotated[int, Ge(1)] = 8
    """Scaf-GRPO: hints of a prompt, from the weakest to the strongest."""
    hint_after_steps: NonNegativeInt = 50
    """Scaf-GRPO: steps before the first hint."""
    loss_on_injected_losers: Fraction = 1.0
    """Further factor of that weight where the advantage is not above 0."""
    feedback_share: Fraction = 0.25
    """ThinkTuning: part of a group, its first completions, that a teacher comments on."""
    feedback_tokens: Annotated[int, Ge(1)] = 64
    """ThinkTuning: most tokens of a comment."""
    hints: Annotated[int, Ge(2)] = 4
    """HiLL: hints that the hinter writes for an unsolved prompt."""
    hint_reliance: Annotated[float, Ge(0.01)] = 0.3
    """HiLL: reliance on a hint, in nats per token, that divides its reward by e."""
    hint_fault: NonNegativeFloat = 0.2
    """HiLL: what a hint costs that cannot be used."""
    calls: Annotated[int, Ge(1)] = 8
    """M-GRPO: calls of a completion that the sub-agent learns from, copies among them."""
    calls_max: Annotated[int, Ge(1)] = 16
    """M-GRPO: calls of a completion that are answered at most; further ones are ignored."""
    sub_format_weight: NonNegativeFloat = 0.1
    """M-GRPO: what an answer in form is paid."""
    sub_main_weight: NonNegativeFloat = 0.5
    """M-GRPO: what it is paid besides if the completion that called is right."""
    sub_expert_weight: NonNegativeFloat = 0.4
    """M-GRPO: weight of what the experts (`calls.experts`) give it."""
    refined_rows: Annotated[int, Ge(1)] = 1
    """RGR-GRPO: completions refined of each group, in the place of its worst."""
    likelihood_coef: NonNegativeFloat = 0.05
    """ExPO: weight at the first step of the log-likelihood of explanations, mean over tokens."""
    expert_coef: NonNegativeFloat = 0.0
    """MASA: weight of the log-likelihood of predictions that were put right; 0: none are kept."""
    expert_notion: Fraction = 0.2
    """MASA: least score of a prediction's notions with which it is kept to be imitated."""
    reshape_gamma: NonNegativeFloat = 0.1
    """`offset`: what is added to a ratio in its denominator; `power`: its exponent."""
    reshape_quantile: Fraction = 0.9
    """`quantile`: which quantile of a completion's ratios is added."""
    step_coef: NonNegativeFloat = 1.0
    """WS-GRPO: weight of the step rewards."""
    outcome_coef: NonNegativeFloat = 5.0
    """WS-GRPO: weight of the outcome."""
    step_penalty: NonNegativeFloat = 1.0
    """WS-GRPO: what a number of steps outside of the range costs, in reward units."""
    step_low: NonNegativeInt = 3
    """WS-GRPO: fewest steps without a penalty."""
    step_high: NonNegativeInt = 6
    """WS-GRPO: most steps without a penalty."""
    stop_below: Fraction = 0.5
    """Plan `stop`: preference for a step below which a completion ends behind it."""
    care_coef: NonNegativeFloat = 0.5
    """GRPO-CARE: the bonus, as a part of the reward."""
    care_margin: NonNegativeFloat = 0.01
    """GRPO-CARE: how much less likely than the mean an answer with a bonus may be."""
    ref_decay: Fraction = 0.995
    """GRPO-CARE: what the reference policy keeps of itself when it is updated."""
    ref_every_steps: Annotated[int, Ge(1)] = 10
    """GRPO-CARE: steps between its updates."""
    draw: str = "order"
    """Which prompts a step asks: the next ones, or by what is known of them."""
    draw_candidates: NonNegativeInt = 0
    """Prompts of the run's order that are looked at for each one drawn; 0: all of the data."""
    priority_floor: NonNegativeFloat = 0.05
    """Weight in the draw of a prompt whose outcome is certain."""
    rare_low: Fraction = 0.0625
    """Least success rate of prompts seldom solved, and failure rate of those seldom missed."""
    rare_high: Fraction = 0.25
    """Greatest such rate."""
    rare_weight: NonNegativeFloat = 2.0
    """Factor of the advantages of such prompts, for `rare_events`."""
    refill: str = "none"
    """What is trained in the place of groups whose rewards are all equal."""
    value_blend: Fraction = 0.5
    """Task value: part of difficulty; the rest is uncertainty."""
    copies_max: NonNegativeFloat = 2.0
    """Copies of a group that count in full; more share this weight."""
    replay: str = "none"
    """Which completions of earlier steps come back: none, or those of prompts drawn by bucket."""
    replay_share: Fraction = 0.5
    """Most of a step's prompts that a stored completion comes back for."""
    replay_start: Fraction = 0.35
    """Share of right completions in a step above which completions begin to come back."""
    replay_spread: Annotated[float, Ge(0.01)] = 1.0
    """Deviation, in successes of a group, of the density that prompts are drawn by."""
    replay_candidates: Annotated[int, Ge(1)] = 8
    """Newest stored completions of a prompt among which the lowest entropy decides."""
    replay_capacity: Annotated[int, Ge(1)] = 8192
    """Completions that are stored; the oldest make room."""
    skill_start_steps: NonNegativeInt = 500
    """ARISE: steps before skills are used; they are made from the first step on."""
    skill_confidence: Fraction = 0.35
    """ARISE: softmax of the best skill below which none is used."""
    skill_explore: Fraction = 0.1
    """ARISE: chance that any skill is used in the place of the best."""
    skill_cache: Annotated[int, Ge(1)] = 10
    """ARISE: skills that the policy may choose from."""
    skill_reservoir: NonNegativeInt = 100
    """ARISE: skills kept besides, which may come back."""
    row_mask: str = "none"
    """Completions that count in their group but are not trained."""
    spare_chance: Fraction = 0.3
    """Chance that a completion which was cut off is not trained."""
    repeat_tokens: Annotated[int, Ge(1)] = 128
    """Tokens at the end that repeat those before: such a completion is trained."""
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
        checks.refuse(self.name, field_problems({f: getattr(self, f) for f in FIELDS}))


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
