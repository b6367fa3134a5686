"""BASE: what is subtracted from a reward.

Letters: P prompts, G completions per prompt. Every choice has the signature `Base`. `side.valid` is
always set; rows where it is False hold reward 0 and must not enter any statistic. With K reward
columns a choice is called once for each. `state` is the tracker's.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side, required
from jgrpo.algo.statistics import (
    batch_deviations,
    count,
    deviations,
    deviations_from,
    lower_median,
)
from jgrpo.algo.trackers import BetaTracker, of_kind

# (m, rewards, side, state) -> rewards less their baseline
Base: TypeAlias = Callable[[Method, Float[Array, "P G"], Side, PyTree], Float[Array, "P G"]]


def no_baseline(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Leaves rewards as they are."""
    return rewards


def group_mean(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the mean of the group's valid rewards.

    Returns:
      Centred rewards, in reward units. Valid ones sum to zero in each group.

    References:
      GRPO, arXiv:2402.03300. Departs: none.
    """
    return deviations(rewards, required(side.valid, "valid", m))


def leave_one_out(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts from each reward the mean of the other valid rewards of its group.

    A_i = r_i - mean(r_j for j != i) = n / (n - 1) * (r_i - mean(r)), n valid rows.

    Returns:
      Advantages in reward units. Valid ones sum to zero in each group; a group of one gets 0.

    References:
      RLOO, arXiv:2402.14740. Departs: a group of one gets 0, where verl keeps the raw reward.
    """
    valid = required(side.valid, "valid", m)
    size = count(valid)
    return deviations(rewards, valid) * (size / jnp.maximum(size - 1.0, 1.0))


def group_median(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the lower median of the group's valid rewards.

    References:
      MC-GRPO, arXiv:2601.22582. Departs: none (its code takes torch's median, the lower one).
    """
    valid = jnp.asarray(required(side.valid, "valid", m))
    return jnp.where(valid, rewards - lower_median(rewards, valid), 0.0)


def length_weighted(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the mean reward of the group's tokens: long completions weigh more.

    Raises:
      ValueError: if `lengths` is missing.

    References:
      OPO, as in verl. Departs: a group of one gets 0, where verl keeps the raw reward.
    """
    valid = jnp.asarray(required(side.valid, "valid", m))
    lengths = jnp.asarray(required(side.lengths, "lengths", m)).astype(jnp.float32)
    lengths = jnp.where(valid, lengths, 0.0)
    away = deviations(rewards, valid)
    total = jnp.maximum(jnp.sum(lengths, axis=1, keepdims=True), 1.0)
    return jnp.where(valid, away - jnp.sum(lengths * away, axis=1, keepdims=True) / total, 0.0)


def batch_mean(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the mean of all valid rewards of the batch.

    References:
      Own composition. Departs: none.
    """
    return batch_deviations(rewards, required(side.valid, "valid", m))[0]


def stratum_mean(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the mean of the valid rewards of the same group and stratum.

    Returns:
      Centred rewards; exactly 0 where a row is the only one of its stratum.

    Raises:
      ValueError: if `strata` is missing.

    References:
      Stratified GRPO, arXiv:2510.06214. Departs: a stratum of one gets 0 (not stated there).
    """
    fellows = same_stratum(m, side)
    # Of pairwise differences, so that a constant stratum is exactly 0 wherever it lies.
    gaps = jnp.where(fellows, rewards[:, :, None] - rewards[:, None, :], 0.0)
    number = jnp.sum(fellows, axis=2).astype(jnp.float32)
    return jnp.sum(gaps, axis=2) / jnp.maximum(number, 1.0)


def same_stratum(m: Method, side: Side) -> Bool[Array, "P G G"]:
    """Whether two completions of a group are both valid and of one stratum."""
    valid = jnp.asarray(required(side.valid, "valid", m))
    strata = jnp.asarray(required(side.strata, "strata", m))
    both = valid[:, :, None] & valid[:, None, :]
    return both & (strata[:, :, None] == strata[:, None, :])


def virtual_mean(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the mean of the group's rewards and of `add_max_reward_num` perfect ones.

    References:
      NGRPO, arXiv:2509.18851. Departs: a group of one is treated as any other (verl's fork sets
      mean 0 and deviation 1).
    """
    everyone, counted = with_virtual(m, rewards, side)
    return deviations(everyone, counted)[:, : rewards.shape[1]]


def with_virtual(
    m: Method, rewards: Float[Array, "P G"], side: Side
) -> tuple[Float[Array, "P N"], Bool[Array, "P N"]]:
    """The group's rewards followed by the virtual perfect ones, and which of all count."""
    valid = jnp.asarray(required(side.valid, "valid", m))
    shape = (rewards.shape[0], m.add_max_reward_num)
    perfect = jnp.full(shape, m.max_reward, jnp.float32)
    counted = jnp.broadcast_to(jnp.any(valid, axis=1, keepdims=True), shape)
    return (
        jnp.concatenate([rewards, perfect], axis=1),
        jnp.concatenate([valid, counted], axis=1),
    )


def sampled_mean(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the mean of the group's sampled rows; reference rows are compared with it too.

    Raises:
      ValueError: if `reference` is missing.

    References:
      GRAO, arXiv:2508.07750. Departs: that the reference row stays out of the mean is assumed.
    """
    valid = jnp.asarray(required(side.valid, "valid", m))
    return deviations_from(rewards, sampled_rows(m, side), valid)


def sampled_rows(m: Method, side: Side) -> Bool[Array, "P G"]:
    """True at valid rows that the policy wrote."""
    valid = jnp.asarray(required(side.valid, "valid", m))
    return valid & ~jnp.asarray(required(side.reference, "reference", m))


def tracker_mean(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the prompt's tracked value alpha / (alpha + beta), as it was before this batch.

    Raises:
      ValueError: if `prompt_ids` or the tracker is missing.

    References:
      SPO, arXiv:2509.13232. Departs: none.
    """
    ids = jnp.asarray(required(side.prompt_ids, "prompt_ids", m))
    state = of_kind(m, state, BetaTracker)
    value = (state.alpha / (state.alpha + state.beta))[ids]
    valid = jnp.asarray(required(side.valid, "valid", m))
    return jnp.where(valid, rewards - value[:, None], 0.0)


def prior_mean(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the group's mean, shrunk towards the prompt's predicted value.

    gap = max(0, (mean - V)^2 - s / n), weight = gap / (gap + s / n) of the mean and the rest of V,
    with n valid rows and s = `prior_noise`. Where V is nan, the mean alone is the baseline.

    Raises:
      ValueError: if `prior` is missing.

    References:
      V0.5, arXiv:2603.10848 (positive-part James-Stein). Departs: none.
    """
    valid = jnp.asarray(required(side.valid, "valid", m))
    prior = jnp.asarray(required(side.prior, "prior", m)).astype(jnp.float32)[:, None]
    size = jnp.maximum(count(valid), 1.0)
    mean = jnp.sum(jnp.where(valid, rewards, 0.0), axis=1, keepdims=True) / size
    noise = m.prior_noise / size
    prior = jnp.where(jnp.isnan(prior), mean, prior)
    gap = jnp.maximum(jnp.square(mean - prior) - noise, 0.0)
    weight = gap / jnp.where(gap + noise > 0, gap + noise, 1.0)
    return jnp.where(valid, rewards - (prior + weight * (mean - prior)), 0.0)


_SILENT = ("A group of equal rewards teaches nothing.",)
_WATCH = ("reward/zero_variance_fraction", "advantage/abs_mean")
BASES: Mapping[str, Choice[Base]] = {
    "none": Choice(function=no_baseline, formula="A0 = R'"),
    "group_mean": Choice(
        function=group_mean, formula="A0_i = R'_i - mean_j R'_j", watch=_WATCH, pitfalls=_SILENT
    ),
    "leave_one_out": Choice(
        function=leave_one_out,
        formula="A0_i = R'_i - mean_{j != i} R'_j = G / (G - 1) * (R'_i - mean_j R'_j)",
        watch=_WATCH,
        pitfalls=_SILENT,
    ),
    "group_median": Choice(
        function=group_median,
        formula="A0_i = R'_i - median_j R'_j (the lower of two)",
        watch=_WATCH,
        pitfalls=_SILENT,
    ),
    "length_weighted": Choice(
        function=length_weighted,
        formula="A0_i = R'_i - sum_j n_j R'_j / sum_j n_j",
        needs=("lengths",),
        watch=_WATCH,
        pitfalls=_SILENT,
    ),
    "batch_mean": Choice(
        function=batch_mean,
        formula="A0_i = R'_i - mean of R' over the batch",
        watch=("advantage/abs_mean",),
        pitfalls=("Easy prompts push everything up, hard ones everything down.",),
    ),
    "stratum_mean": Choice(
        function=stratum_mean,
        formula="A0_i = R'_i - mean of R'_j over the j of the stratum of i",
        needs=("strata",),
        watch=_WATCH,
        pitfalls=("A completion alone in its stratum gets 0.",),
    ),
    "virtual_mean": Choice(
        function=virtual_mean,
        formula="A0_i = R'_i - mean of R' and add_max_reward_num times max_reward",
        constants=("max_reward", "add_max_reward_num"),
        watch=("advantage/abs_mean",),
        pitfalls=(
            "max_reward must be the true maximum; a group that is all right then teaches nothing.",
            "Advantages sum to less than 0 on purpose.",
        ),
    ),
    "sampled_mean": Choice(
        function=sampled_mean,
        formula="A0_i = R'_i - mean of R'_j over the sampled j",
        needs=("reference",),
        watch=_WATCH,
        pitfalls=_SILENT,
    ),
    "tracker": Choice(
        function=tracker_mean,
        formula="A0_i = R'_i - alpha / (alpha + beta) of the prompt, before this batch",
        needs=("prompt_ids", "state"),
        watch=("advantage/abs_mean",),
        pitfalls=("Rewards must lie in [0, 1].",),
    ),
    "prior": Choice(
        function=prior_mean,
        formula="A0_i = R'_i - (w mean_j R'_j + (1 - w) V), w = D / (D + s / n),"
        " D = max(0, (mean_j R'_j - V)^2 - s / n), s = prior_noise, n = valid rows",
        constants=("prior_noise",),
        needs=("prior",),
        watch=("advantage/abs_mean",),
        pitfalls=("prior_noise belongs to rewards of -1 and 1; take 0.25 for 0 and 1.",),
    ),
}
