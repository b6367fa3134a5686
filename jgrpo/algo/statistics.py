"""Means, deviations and medians of groups and batches, where only some rows count.

Letters: P prompts, G completions per prompt. Statistics are taken of differences to the lowest
reward, so that constant rewards have exactly zero deviations and large common offsets cost no
precision. Rows that do not count get 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jgrpo.types import AnyArray


def count(valid: Bool[AnyArray, "P G"]) -> Float[Array, "P 1"]:
    """Rows that count in each group."""
    return jnp.sum(valid, axis=1, keepdims=True).astype(jnp.float32)


def deviations(rewards: Float[Array, "P G"], valid: Bool[AnyArray, "P G"]) -> Float[Array, "P G"]:
    """Rewards less the mean of the valid ones; exactly 0 for a constant group and invalid rows."""
    lowest = jnp.min(jnp.where(valid, rewards, jnp.inf), axis=1, keepdims=True)
    above = jnp.where(valid, rewards - lowest, 0.0)
    mean = jnp.sum(above, axis=1, keepdims=True) / jnp.maximum(count(valid), 1.0)
    return jnp.where(valid, above - mean, 0.0)


def deviations_from(
    rewards: Float[Array, "P G"], counted: Bool[AnyArray, "P G"], valid: Bool[AnyArray, "P G"]
) -> Float[Array, "P G"]:
    """Valid rewards less the mean of the counted ones, which may be fewer; 0 if none counts."""
    lowest = jnp.min(jnp.where(counted, rewards, jnp.inf), axis=1, keepdims=True)
    lowest = jnp.where(jnp.isfinite(lowest), lowest, 0.0)
    above = jnp.where(valid, rewards - lowest, 0.0)
    total = jnp.sum(jnp.where(counted, above, 0.0), axis=1, keepdims=True)
    mean = total / jnp.maximum(count(counted), 1.0)
    return jnp.where(jnp.asarray(valid) & (count(counted) > 0), above - mean, 0.0)


def group_deviation(
    rewards: Float[Array, "P G"], valid: Bool[AnyArray, "P G"], ddof: int
) -> Float[Array, "P 1"]:
    """Standard deviation of the group's valid rewards."""
    squares = jnp.square(deviations(rewards, valid))
    variance = jnp.sum(squares, axis=1, keepdims=True) / jnp.maximum(count(valid) - ddof, 1.0)
    return jnp.sqrt(variance)


def divided(
    centred: Float[Array, "P G"], deviation: Float[Array, "#P #G"], eps: float
) -> Float[Array, "P G"]:
    """Centred rewards over deviation + eps; exactly 0 where the deviation is 0."""
    varied = deviation > 0
    return jnp.where(varied, centred / jnp.where(varied, deviation + eps, 1.0), 0.0)


def lower_median(x: Float[Array, "P G"], valid: Bool[AnyArray, "P G"]) -> Float[Array, "P 1"]:
    """Median of the valid values; of an even number of them the lower of the middle two."""
    ordered = jnp.sort(jnp.where(valid, x, jnp.inf), axis=1)
    middle = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True) - 1, 0) // 2
    median = jnp.take_along_axis(ordered, middle, axis=1)
    return jnp.where(jnp.isfinite(median), median, 0.0)


def batch_deviations(
    x: Float[Array, "*shape"], valid: Bool[AnyArray, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, ""]]:
    """Valid entries less the mean of them all, and their sample variance."""
    number = jnp.sum(valid).astype(jnp.float32)
    above = jnp.where(valid, x - jnp.min(jnp.where(valid, x, jnp.inf)), 0.0)
    away = jnp.where(valid, above - jnp.sum(above) / jnp.maximum(number, 1.0), 0.0)
    return away, jnp.sum(jnp.square(away)) / jnp.maximum(number - 1.0, 1.0)


def ascending_rank(x: Float[Array, "P G"], valid: Bool[AnyArray, "P G"]) -> Float[Array, "P G"]:
    """Number of valid values below each one; of equal values the first counts as the lower."""
    before = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool), -1)[None]
    below = (x[:, None, :] < x[:, :, None]) | ((x[:, None, :] == x[:, :, None]) & before)
    return jnp.sum(below & jnp.asarray(valid)[:, None, :], axis=2).astype(jnp.float32)


def rows(x: Shaped[AnyArray, "P G T"]) -> Shaped[Array, "B T"]:
    """Completions as plain rows, group by group."""
    return jnp.asarray(x).reshape(-1, x.shape[-1])
