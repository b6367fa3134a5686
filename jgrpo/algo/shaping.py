"""SHAPE: reward transforms before the group statistics, and the KL penalty inside the reward.

Letters: P prompts, G completions per prompt, K reward columns. Every choice has the signature
`Shape`: rewards and side information in, rewards out; some take K columns to one. Rows that do not
count (`side.valid` False) hold 0 on the way in.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from jgrpo.algo.care import CARE
from jgrpo.algo.choice import Choice
from jgrpo.algo.lengths import LENGTHS
from jgrpo.algo.preference import WEAK
from jgrpo.algo.row import Method
from jgrpo.algo.serial import SERIAL
from jgrpo.algo.side import Side, required
from jgrpo.algo.skills import SKILL_SHAPES
from jgrpo.algo.staged import STAGED
from jgrpo.algo.statistics import ascending_rank

Rewards: TypeAlias = Float[Array, "P G"] | Float[Array, "P G K"]
Shape: TypeAlias = Callable[[Method, Rewards, Side], Rewards]


def unshaped(m: Method, rewards: Rewards, side: Side) -> Rewards:
    """Leaves rewards as they are."""
    return rewards


def overlong(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Adds a penalty that grows linearly over the last tokens before the length limit.

    0 up to L_max - L_c tokens, then ((L_max - L_c) - n) / L_c, and -1 beyond L_max; times
    `overlong_penalty`.

    Args:
      m: reads `overlong_buffer_tokens` (L_c, tokens) and `overlong_penalty` (reward units).
      rewards: any finite range; the paper uses -1 and 1.
      side: `lengths` and `max_completion_tokens` (L_max) in tokens.

    Returns:
      Rewards, lowered by at most `overlong_penalty`.

    Raises:
      ValueError: if `lengths` or `max_completion_tokens` is missing.

    References:
      DAPO, arXiv:2503.14476, eq. 13. Departs: none.
    """
    lengths = jnp.asarray(required(side.lengths, "lengths", m)).astype(jnp.float32)
    limit = required(side.max_completion_tokens, "max_completion_tokens", m)
    free_tokens = limit - m.overlong_buffer_tokens
    excess = (lengths - free_tokens) / m.overlong_buffer_tokens
    return rewards - m.overlong_penalty * jnp.clip(excess, 0.0, 1.0)


def weighted_sum(m: Method, rewards: Float[Array, "P G K"], side: Side) -> Float[Array, "P G"]:
    """Adds the columns, each times its weight, before any statistic is taken.

    References:
      multi-objective GRPO; a weighted sum of the scores of one reward model. Departs: none.
    """
    return jnp.sum(rewards * column_weights(m, rewards.shape[2]), axis=2)


def column_mean(m: Method, rewards: Rewards, side: Side) -> Float[Array, "P G"]:
    """Averages the columns; a single reward stays as it is.

    References:
      MASA, arXiv:2510.03259: the meta rollouts' mean of three rewards. Departs: none.
    """
    return rewards if rewards.ndim == 2 else jnp.mean(rewards, axis=2)


def unlikeliness(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Takes from a reward the more, the likelier its completion is within the group.

    r (1 - rank_penalty k / G), k the ascending rank of the mean log-prob, 0 for the least likely.

    Raises:
      ValueError: if `mean_logp` is missing.

    References:
      arXiv:2506.02355. Departs: ties rank in order of row; G counts the valid rows.
    """
    valid = jnp.asarray(required(side.valid, "valid", m))
    logp = jnp.asarray(required(side.mean_logp, "mean_logp", m)).astype(jnp.float32)
    size = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1).astype(jnp.float32)
    return rewards * (1.0 - m.rank_penalty * ascending_rank(logp, valid) / size)


def squash(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Compresses rewards above `squash_tau` with a logarithm and spreads those below it.

    References:
      TempSamp-R1, arXiv:2509.18056. Departs: none.
    """
    tau, low = m.squash_tau, m.squash_alpha_low
    above = jnp.maximum(rewards - tau, 0.0)
    below = jnp.maximum(tau - rewards, 0.0)
    # The limit of (e^(a x) - 1) / (e^a - 1) as a goes to 0 is x.
    spread = jnp.expm1(low * below) / math.expm1(low) if low > 0 else below
    return tau + m.squash_alpha_high * jnp.log1p(above) - spread


def outcome_weight(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Maps success 1 to 1 and failure 0 to -lambda_neg (linear in between).

    References:
      Weighted GRPO, arXiv:2602.03452. Departs: none.
    """
    return rewards + (rewards - 1.0) * m.lambda_neg


def rubric(m: Method, rewards: Float[Array, "P G K"], side: Side) -> Float[Array, "P G"]:
    """Outcome, of which a part is paid by the rubric score over the group's best score.

    Columns: outcome in {0, 1}, rubric score in [0, 1].

    References:
      C-GRPO (CaRR), arXiv:2601.06021. Departs: a group whose best score is 0 is not divided.
    """
    outcome, score = _two_columns(m, rewards)
    best = jnp.max(score, axis=1, keepdims=True)
    share = score / jnp.where(best > 0, best, 1.0)
    return (1.0 - m.rubric_reward_ratio) * outcome + m.rubric_reward_ratio * outcome * share


def rubric_raw(m: Method, rewards: Float[Array, "P G K"], side: Side) -> Float[Array, "P G"]:
    """Outcome, of which a part is paid by the rubric score as it stands, if the answer is right.

    References:
      The CaRR repository with its published flags. Departs from the paper: score not normalised.
    """
    outcome, score = _two_columns(m, rewards)
    paid = (1.0 - m.rubric_reward_ratio) * outcome + m.rubric_reward_ratio * score
    return jnp.where(outcome > 0, paid, outcome)


def unit_range(m: Method, rewards: Rewards, side: Side) -> Rewards:
    """Maps [min_value, max_value] to [0, 1].

    References:
      BNPO, arXiv:2506.02864. Departs: one range for all columns.
    """
    return (rewards - m.min_value) / (m.max_value - m.min_value)


def suffix_dcg(m: Method, rewards: Float[Array, "P G K"], side: Side) -> Float[Array, "P G K"]:
    """Hits of a list's items to what each item can cause: the discounted hits from it on.

    r_k = sum_{j >= k} hit_j / log2(j + 2), j from 0.

    References:
      Rank-GRPO, arXiv:2510.20150, `log_decay`. Departs: none.
    """
    discount = 1.0 / jnp.log2(jnp.arange(rewards.shape[2], dtype=jnp.float32) + 2.0)
    return jnp.cumsum((rewards * discount[None, None])[..., ::-1], axis=2)[..., ::-1]


def column_weights(m: Method, columns: int) -> Float[Array, "1 1 K"]:
    """The weight of each reward column: `reward_weights`, or all 1.

    Raises:
      ValueError: if there are as many weights as columns neither there nor none.
    """
    if not m.reward_weights:
        return jnp.ones((1, 1, columns), jnp.float32)
    if len(m.reward_weights) != columns:
        raise ValueError(
            f"method {m.name!r}: reward_weights has {len(m.reward_weights)} numbers for {columns} "
            "reward columns; give one for each, or none"
        )
    return jnp.asarray(m.reward_weights, jnp.float32)[None, None]


def _two_columns(
    m: Method, rewards: Float[Array, "P G K"]
) -> tuple[Float[Array, "P G"], Float[Array, "P G"]]:
    if rewards.shape[2] != 2:
        raise ValueError(
            f"method {m.name!r}: shape {m.shape!r} takes 2 reward columns, the outcome and the "
            f"rubric score, got {rewards.shape[2]}"
        )
    return rewards[..., 0], rewards[..., 1]


def kl_in_reward(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Subtracts `kl_coef` times the summed penalty of the completion; k1: sum_t (logp - ref_logp).

    Args:
      m: reads `kl_coef` (reward units per nat).
      rewards: shaped rewards.
      side: `sequence_kl`, the sum of the penalty over the completion's tokens, in nats.

    Returns:
      Penalised rewards.

    Raises:
      ValueError: if `sequence_kl` is missing.

    References:
      RLOO, arXiv:2402.14740. Departs: none.
    """
    kl = jnp.asarray(required(side.sequence_kl, "sequence_kl", m)).astype(jnp.float32)
    return rewards - m.kl_coef * kl


SHAPES: Mapping[str, Choice[Shape]] = {
    "none": Choice(function=unshaped, formula="R' = R"),
    "overlong": Choice(
        function=overlong,
        formula="R' = R - overlong_penalty * clip((n - (L_max - L_c)) / L_c, 0, 1),"
        " L_c = overlong_buffer_tokens, L_max = longest completion",
        constants=("overlong_buffer_tokens", "overlong_penalty"),
        needs=("lengths",),
        watch=("completion/length_mean", "completion/clipped_fraction"),
        pitfalls=(
            "The penalty is in reward units: compare it with the spread of your rewards.",
            "The buffer must be shorter than the longest completion, or every completion is fined.",
        ),
    ),
    "weighted_sum": Choice(
        function=weighted_sum,
        formula="R'_i = sum_k w_k R_ik, w = reward_weights",
        constants=("reward_weights",),
        needs=("columns",),
        watch=("reward/mean",),
        pitfalls=("The column of widest range dominates the sum.",),
    ),
    "column_mean": Choice(
        function=column_mean,
        formula="R'_i = mean_k R_ik (a single reward stays)",
        watch=("reward/mean",),
    ),
    "unlikeliness": Choice(
        function=unlikeliness,
        formula="R'_i = R_i (1 - rank_penalty k_i / G), k = rank of the mean log-prob, from 0",
        constants=("rank_penalty",),
        needs=("mean_logp",),
        watch=("entropy/mean",),
        pitfalls=("Meant for rewards of 0 and 1: a negative reward would shrink instead.",),
    ),
    "squash": Choice(
        function=squash,
        formula="R' = tau + squash_alpha_high ln(R - tau + 1) if R >= tau, else"
        " tau - (e^(a (tau - R)) - 1) / (e^a - 1); tau = squash_tau, a = squash_alpha_low",
        constants=("squash_tau", "squash_alpha_high", "squash_alpha_low"),
        watch=("reward/group_std",),
        pitfalls=("If all rewards are above tau the z-score blows their small spread up again.",),
    ),
    "outcome_weight": Choice(
        function=outcome_weight,
        formula="R' = 1 for success, -lambda_neg for failure",
        constants=("lambda_neg",),
        watch=("advantage/abs_mean",),
        pitfalls=(
            "With the mean and deviation of the group this changes nothing (any two-valued map is"
            " undone); it acts with scale none, or with batch_mean and batch_std.",
        ),
    ),
    "rubric": Choice(
        function=rubric,
        formula="R' = (1 - a) o + a o c / max_j c_j, a = rubric_reward_ratio,"
        " o = outcome, c = rubric score",
        constants=("rubric_reward_ratio",),
        needs=("columns",),
        watch=("reward/mean", "reward/group_std"),
    ),
    "rubric_raw": Choice(
        function=rubric_raw,
        formula="R' = (1 - a) o + a c where the answer is right, else o; a = rubric_reward_ratio",
        constants=("rubric_reward_ratio",),
        needs=("columns",),
        watch=("reward/mean", "reward/group_std"),
    ),
    "unit_range": Choice(
        function=unit_range,
        formula="R' = (R - min_value) / (max_value - min_value)",
        constants=("min_value", "max_value"),
        watch=("reward/mean",),
        pitfalls=("min_value and max_value must bound every reward there is.",),
    ),
    "suffix_dcg": Choice(
        function=suffix_dcg,
        formula="R'_ik = sum_{j >= k} R_ij / log2(j + 2), one column per item, from 0",
        needs=("columns",),
        watch=("reward/mean",),
    ),
    **LENGTHS,
    **SERIAL,
    **CARE,
    **WEAK,
    **STAGED,
    **SKILL_SHAPES,
}
