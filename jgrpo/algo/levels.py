"""LEVEL: the unit of the importance ratio, as an operator on token log-ratios and a gradient path.

Letters: B sequences, T token positions. Every choice has the signature `Level`: token log-ratios
d = clamp(logp - old_logp, -20, 20), logp, mask and segment ids in, the log-ratio of each token's
unit out. d and logp are 0 where the mask is False.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from jgrpo.algo.choice import Choice

Level: TypeAlias = Callable[
    [Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"], Int[Array, "B T"] | None],
    Float[Array, "B T"],
]


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
}
