"""LEVEL: the unit of the importance ratio, as an operator on token log-ratios and a gradient path.

Letters: B sequences, T token positions. Every choice has the signature `Level`: token log-ratios
d = clamp(logp - old_logp, -20, 20), logp, mask and segment ids in, the log-ratio of each token's
unit out. d and logp are 0 where the mask is False. All are fixed linear operators on d; the path of
the gradient is either through the operator, or local: only through the token's own log-prob.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from jgrpo.algo.choice import Choice

# Bound of the log-ratio of a token, cap of that of a prefix, and bound of that of a whole sequence
# (the last two grow with length).
MAX_LOG_RATIO = 20.0
MAX_PREFIX_LOG_RATIO = 10.0
MAX_SEQUENCE_LOG_RATIO = 20.0

Level: TypeAlias = Callable[
    [Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"], Int[Array, "B T"] | None],
    Float[Array, "B T"],
]


def token_log_ratio(logp: Float[Array, "B T"], other: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Difference logp - other (nats), clamped to [-20, 20] so that no exponential overflows."""
    return jnp.clip(logp - other, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def token(
    log_ratio: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T"]:
    """One ratio per token.

    References:
      PPO, arXiv:1707.06347. Departs: none.
    """
    return log_ratio


def sequence(
    log_ratio: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T"]:
    """One ratio per sequence, the mean of its token log-ratios; gradients flow through the mean.

    Returns:
      The row's mean at every position (0 for an empty row), in nats per token.

    References:
      GSPO, arXiv:2507.18071. Departs: none.
    """
    length_B1 = jnp.sum(mask, axis=1, keepdims=True).astype(jnp.float32)
    mean_B1 = jnp.sum(log_ratio, axis=1, keepdims=True) / jnp.maximum(length_B1, 1.0)
    return jnp.broadcast_to(mean_B1, log_ratio.shape)


def sequence_token(
    log_ratio: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T"]:
    """The sequence's ratio in value; in gradient, each token's own log-prob alone.

    References:
      GSPO-token, arXiv:2507.18071. Departs: none.
    """
    # The bracket is exactly zero in value, whatever the size of logp.
    value = stop_gradient(sequence(log_ratio, logp, mask, segments))
    return value + (logp - stop_gradient(logp))


def segment(
    log_ratio: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T"]:
    """One ratio per item of a list: the mean over the item's tokens, gradients through it.

    Raises:
      ValueError: if `segments` is missing.

    References:
      Rank-GRPO, arXiv:2510.20150. Departs: none.
    """
    if segments is None:
        raise ValueError("level 'segment' needs segments: pass the item id of each token")
    width = log_ratio.shape[1]
    inside = mask & (segments >= 0)
    # Ids beyond the width share one bin; there cannot be more items than tokens.
    ids = jnp.where(inside, jnp.minimum(segments, width - 1), width)

    def row_mean(d_T: Float[Array, " T"], ids_T: Int[Array, " T"]) -> Float[Array, " T"]:
        total = jax.ops.segment_sum(d_T, ids_T, width + 1)
        number = jax.ops.segment_sum(jnp.ones_like(d_T), ids_T, width + 1)
        return (total / jnp.maximum(number, 1.0))[ids_T]

    return jnp.where(inside, jax.vmap(row_mean)(log_ratio, ids), 0.0)


def prefix_sum(
    log_ratio: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T"]:
    """The log-ratio of all tokens up to this one, capped at 10; in gradient, the token's own.

    References:
      CTPO, arXiv:2605.07331, `cum-token-cumprod`. Departs: none.
    """
    return _capped_local(jnp.cumsum(log_ratio, axis=1), logp)


def prefix_mean(
    log_ratio: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T"]:
    """The mean log-ratio of the tokens up to this one; in gradient, the token's own log-prob.

    References:
      CTPO, arXiv:2605.07331, `cum-token-geomean`. Departs: none.
    """
    steps = jnp.maximum(jnp.cumsum(mask, axis=1), 1).astype(jnp.float32)
    return _capped_local(jnp.cumsum(log_ratio, axis=1) / steps, logp)


def sequence_sum(
    log_ratio: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T"]:
    """The log-ratio of the whole sequence without gradient, bounded to [-20, 20].

    References:
      VESPO, as in TRL. Departs: the bound; the gate is 0 beyond it at the method's constants.
    """
    total = jnp.sum(log_ratio, axis=1, keepdims=True)
    bounded = jnp.clip(total, -MAX_SEQUENCE_LOG_RATIO, MAX_SEQUENCE_LOG_RATIO)
    return stop_gradient(jnp.broadcast_to(bounded, log_ratio.shape))


def _capped_local(value: Float[Array, "B T"], logp: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """The value with the gradient of the token's log-prob; without any where it is capped."""
    local = stop_gradient(value) + (logp - stop_gradient(logp))
    return jnp.where(value > MAX_PREFIX_LOG_RATIO, MAX_PREFIX_LOG_RATIO, local)


LEVELS: Mapping[str, Choice[Level]] = {
    "token": Choice(
        function=token,
        formula="ell_it = d_it",
        watch=("ratio/deviation_max",),
    ),
    "sequence": Choice(
        function=sequence,
        formula="ell_it = sum_s m_is d_is / n_i, gradient through the mean",
        watch=("ratio/deviation_max", "ratio/clip_fraction"),
        pitfalls=(
            "The mean log-ratio is far smaller than a token's, so clip ranges are of order 1e-4; "
            "on short completions that range clips at once: widen it.",
            "With weights other than sequence_mean a sequence counts in proportion to its length.",
        ),
    ),
    "sequence_token": Choice(
        function=sequence_token,
        formula="ell_it = sg(sum_s m_is d_is / n_i) + lp_it - sg(lp_it)",
        watch=("ratio/deviation_max", "ratio/clip_fraction"),
        pitfalls=(
            "The mean log-ratio is far smaller than a token's, so clip ranges are of order 1e-4; "
            "on short completions that range clips at once: widen it.",
        ),
    ),
    "segment": Choice(
        function=segment,
        formula="ell_it = mean of d over the tokens of t's item, gradient through the mean",
        needs=("segments",),
        watch=("ratio/deviation_max", "ratio/clip_fraction"),
        pitfalls=("Tokens of no item have ratio 1.",),
    ),
    "prefix_sum": Choice(
        function=prefix_sum,
        formula="ell_it = min(sg(sum_{s <= t} m_is d_is) + lp_it - sg(lp_it), 10)",
        watch=("ratio/deviation_max", "ratio/clip_fraction"),
        pitfalls=("The ratio of a prefix drifts with its length: fixed clip ranges cut the end.",),
    ),
    "prefix_mean": Choice(
        function=prefix_mean,
        formula="ell_it = min(sg(mean_{s <= t} d_is) + lp_it - sg(lp_it), 10)",
        watch=("ratio/deviation_max", "ratio/clip_fraction"),
    ),
    "sequence_sum": Choice(
        function=sequence_sum,
        formula="ell_it = sg(clip(sum_s m_is d_is, -20, 20))",
        watch=("ratio/deviation_max",),
        pitfalls=("Has no gradient: use it with trust vespo or cispo, whose gradient is A lp.",),
    ),
}
