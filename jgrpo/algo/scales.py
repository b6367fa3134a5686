"""SCALE: what centred rewards are divided by.

Letters: P prompts, G completions per prompt. Every choice has the signature `Scale` and is linear
in the centred rewards. `side.valid` is always set; other rows hold 0. With K reward columns a
choice is called once for each.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jax.scipy.special import betaln, xlog1py, xlogy
from jaxtyping import Array, Float, PyTree

from jgrpo.algo.baselines import same_stratum, sampled_rows, stratum_mean, with_virtual
from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side, required
from jgrpo.algo.statistics import (
    batch_deviations,
    count,
    divided,
    group_deviation,
    lower_median,
)

# (m, centred, rewards, side, state) -> advantages
Scale: TypeAlias = Callable[
    [Method, Float[Array, "P G"], Float[Array, "P G"], Side, PyTree], Float[Array, "P G"]
]
MAX_INVERSE_DENSITY = 1e6


def unscaled(
    m: Method, centred: Float[Array, "P G"], rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Leaves centred rewards as they are."""
    return centred


def group_std(
    m: Method, centred: Float[Array, "P G"], rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Divides by the standard deviation of the group's valid rewards plus `scale_eps`.

    Args:
      m: reads `scale_ddof` and `scale_eps` (added outside the root).
      centred: rewards less their baseline.
      rewards: the shaped rewards, of which the deviation is taken.
      side: `valid`.
      state: unused.

    Returns:
      Advantages without unit; exactly 0 in a group whose deviation is 0.

    References:
      GRPO, arXiv:2402.03300. Departs: the paper leaves ddof and eps open.
    """
    valid = required(side.valid, "valid", m)
    return divided(centred, group_deviation(rewards, valid, m.scale_ddof), m.scale_eps)


def group_mad(
    m: Method, centred: Float[Array, "P G"], rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Divides by the median distance of the group's rewards from their median, plus `scale_eps`.

    References:
      MC-GRPO, arXiv:2601.22582. Departs: none.
    """
    valid = jnp.asarray(required(side.valid, "valid", m))
    away = jnp.abs(rewards - lower_median(rewards, valid))
    width = lower_median(away, valid) + m.scale_eps
    # A median distance of 0 leaves the floor alone, and without one nothing to divide by.
    return jnp.where(width > 0, centred / jnp.where(width > 0, width, 1.0), 0.0)


def batch_std(
    m: Method, centred: Float[Array, "P G"], rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Divides by the standard deviation of all valid rewards of the batch, plus `scale_eps`.

    References:
      TRL's `scale_rewards="batch"`. Departs: none.
    """
    valid = required(side.valid, "valid", m)
    away, _ = batch_deviations(rewards, valid)
    number = jnp.sum(valid).astype(jnp.float32)
    variance = jnp.sum(jnp.square(away)) / jnp.maximum(number - m.scale_ddof, 1.0)
    return divided(centred, jnp.sqrt(variance)[None, None], m.scale_eps)


def stratum_std(
    m: Method, centred: Float[Array, "P G"], rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Divides by the standard deviation of the row's stratum within its group, plus `scale_eps`.

    References:
      Stratified GRPO, arXiv:2510.06214. Departs: ddof and eps are not stated there.
    """
    fellows = same_stratum(m, side)
    away = stratum_mean(m, rewards, side, state)
    number = jnp.sum(fellows, axis=2).astype(jnp.float32)
    squares = jnp.sum(jnp.where(fellows, jnp.square(away)[:, None, :], 0.0), axis=2)
    return divided(
        centred, jnp.sqrt(squares / jnp.maximum(number - m.scale_ddof, 1.0)), m.scale_eps
    )


def virtual_std(
    m: Method, centred: Float[Array, "P G"], rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Divides by the deviation of the group's rewards and the virtual perfect ones.

    References:
      NGRPO, arXiv:2509.18851. Departs: see `virtual_mean`.
    """
    deviation = group_deviation(*with_virtual(m, rewards, side), m.scale_ddof)
    return divided(centred, deviation, m.scale_eps)


def sampled_std(
    m: Method, centred: Float[Array, "P G"], rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Divides by the deviation of the group's sampled rows; without one, by `scale_eps` alone.

    References:
      GRAO, arXiv:2508.07750. Departs: eps is assumed. The division by eps gives a reference row
      that beats equal samples a huge advantage: the `imitate` post bounds it.
    """
    deviation = group_deviation(rewards, sampled_rows(m, side), m.scale_ddof)
    width = deviation + m.scale_eps
    return jnp.where(width > 0, centred / jnp.where(width > 0, width, 1.0), 0.0)


def beta_density(
    m: Method, centred: Float[Array, "P G"], rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Divides by a Beta density, fitted to the batch's pass rates, at the group's own pass rate.

    Moments M, V of the group means over the batch give kappa = M (1 - M) / V - 1, a = kappa M,
    b = kappa (1 - M), and alpha = max(1, 1 + a / 3), beta = max(1, 1 + b / 3).

    Args:
      m: no constants.
      centred: rewards less their baseline.
      rewards: in [0, 1].
      side: `valid`.
      state: unused.

    References:
      BNPO, arXiv:2506.02864. Departs: where all groups share one pass rate, or there is one group,
      alpha = beta = 1 (the official code divides by zero in the first case).
    """
    valid = jnp.asarray(required(side.valid, "valid", m))
    size = count(valid)
    rate = jnp.sum(jnp.where(valid, rewards, 0.0), axis=1, keepdims=True) / jnp.maximum(size, 1.0)
    filled = size > 0
    away, variance = batch_deviations(rate, filled)
    mean = jnp.sum(jnp.where(filled, rate, 0.0)) / jnp.maximum(
        jnp.sum(filled.astype(jnp.float32)), 1.0
    )
    spread = jnp.any(away != 0)
    kappa = mean * (1.0 - mean) / jnp.where(spread, variance, 1.0) - 1.0
    kappa = jnp.where(spread, kappa, 0.0)
    alpha = jnp.maximum(1.0 + kappa * mean / 3.0, 1.0)
    beta = jnp.maximum(1.0 + kappa * (1.0 - mean) / 3.0, 1.0)
    log_density = xlogy(alpha - 1.0, rate) + xlog1py(beta - 1.0, -rate) - betaln(alpha, beta)
    return centred * jnp.minimum(jnp.exp(-log_density), MAX_INVERSE_DENSITY)


_BLOWN = ("Nearly constant groups are blown up: tiny differences (a length term) count in full.",)
_CONSTANTS = ("scale_eps", "scale_ddof")
SCALES: Mapping[str, Choice[Scale]] = {
    "none": Choice(
        function=unscaled,
        formula="A = A0",
        watch=("advantage/abs_mean",),
        pitfalls=("Advantages carry the scale of the rewards: tune the learning rate to it.",),
    ),
    "group_std": Choice(
        function=group_std,
        formula="A_i = A0_i / (std_j R'_j + scale_eps), std divides by G - scale_ddof",
        constants=_CONSTANTS,
        watch=("reward/group_std",),
        pitfalls=_BLOWN,
    ),
    "group_mad": Choice(
        function=group_mad,
        formula="A_i = A0_i / (median_j abs(R'_j - median R') + scale_eps)",
        constants=("scale_eps",),
        watch=("advantage/abs_mean", "grad/norm"),
        pitfalls=(
            "Two-valued rewards often have median distance 0: the odd one out then gets 1 /"
            " scale_eps, and only a gradient clip or AdamW survives it. Raise scale_eps.",
        ),
    ),
    "batch_std": Choice(
        function=batch_std,
        formula="A_i = A0_i / (std of R' over the batch + scale_eps)",
        constants=_CONSTANTS,
        watch=("advantage/abs_mean",),
    ),
    "stratum_std": Choice(
        function=stratum_std,
        formula="A_i = A0_i / (std of R'_j over the stratum of i + scale_eps)",
        constants=_CONSTANTS,
        needs=("strata",),
        watch=("advantage/abs_mean",),
        pitfalls=_BLOWN,
    ),
    "virtual_std": Choice(
        function=virtual_std,
        formula="A_i = A0_i / (std of R' and add_max_reward_num times max_reward + scale_eps)",
        constants=(*_CONSTANTS, "max_reward", "add_max_reward_num"),
        watch=("advantage/abs_mean",),
    ),
    "sampled_std": Choice(
        function=sampled_std,
        formula="A_i = A0_i / (std of R'_j over the sampled j + scale_eps)",
        constants=_CONSTANTS,
        needs=("reference",),
        watch=("advantage/abs_mean",),
        pitfalls=_BLOWN,
    ),
    "beta_density": Choice(
        function=beta_density,
        formula="A_i = A0_i min(1 / f(p; alpha, beta), 1e6), p = mean_j R'_j, f = Beta density"
        " whose alpha, beta are fitted to the p of the batch",
        watch=("advantage/abs_mean",),
        pitfalls=("Rewards must lie in [0, 1]; use the shape unit_range.",),
    ),
}
