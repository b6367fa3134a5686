"""The loss of any method: a weighted sum over tokens, with the slots filled by the method's row.

Letters: B sequences, T token positions. This file knows no method by name and calls no model:
log-probs arrive computed. Everything is float32 inside, whatever the inputs are. Positions where
the mask is False may hold anything, nan included; they get a gradient of exactly 0.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from jgrpo.algo.levels import LEVELS
from jgrpo.algo.methods import Method
from jgrpo.algo.penalties import PENALTIES, k3
from jgrpo.algo.slots import penalised
from jgrpo.algo.trust import TRUSTS, Trusted
from jgrpo.algo.weights import token_weights
from jgrpo.types import AnyArray

MAX_LOG_RATIO = 20.0


def policy_loss(
    m: Method,
    logp: Float[AnyArray, "B T"],
    *,
    old_logp: Float[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
    advantages: Float[AnyArray, " B"] | Float[AnyArray, "B T"],
    ref_logp: Float[AnyArray, "B T"] | None = None,
    weights: Float[AnyArray, "B T"] | None = None,
    token_share: Float[AnyArray, "B T"] | None = None,
    segments: Int[AnyArray, "B T"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum over tokens of weight * (-surrogate + kl_coef * penalty), to be minimised.

    For a microbatch, pass its rows of the weights and token shares of the whole batch: losses,
    gradients and metrics of the parts then add up exactly.

    Args:
      m: the method.
      logp: log-probs (nats) of the completion tokens under the policy; differentiate by this.
      old_logp: the same under the weights at the start of the step.
      mask: True at trained tokens.
      advantages: one per sequence or one per token.
      ref_logp: log-probs under the reference policy, if the loss penalises distance to it.
      weights: weight of each token; default `token_weights(m, mask)`.
      token_share: weight of each token in the metrics; default mask / number of tokens.
      segments: segment id of each token, for levels that compare segments.

    Returns:
      The loss, and metrics without gradient. Metrics of microbatches combine by addition, those
      whose name ends in `_max` by the maximum. `ratio/*` are of the level's ratio; `kl/old` is the
      k3 estimate of KL(old || policy), `kl/ref` that of KL(policy || reference).

    Raises:
      ValueError: if a shape does not fit, or the method needs a missing `ref_logp`.
    """
    same = {"old_logp": old_logp, "mask": mask, "ref_logp": ref_logp, "weights": weights}
    same |= {"token_share": token_share, "segments": segments}
    _check(m, logp, advantages, same)
    mask = jnp.asarray(mask)
    logp = _masked(logp, mask)
    weights = _masked(token_weights(m, mask) if weights is None else weights, mask)
    token_share = _masked(_equal_shares(mask) if token_share is None else token_share, mask)
    log_ratio = _log_ratio(logp, _masked(old_logp, mask))
    segments = None if segments is None else jnp.asarray(segments)
    level = jnp.where(mask, LEVELS[m.level].function(log_ratio, logp, mask, segments), 0.0)
    trusted = TRUSTS[m.trust].function(m, level, _per_token(advantages, mask), logp, mask)
    loss_policy = -jnp.sum(weights * trusted.value)
    loss_kl = jnp.zeros((), jnp.float32)
    metrics = _ratio_metrics(level, log_ratio, trusted, token_share)
    if ref_logp is not None:
        to_ref = _log_ratio(logp, _masked(ref_logp, mask))
        metrics["kl/ref"] = jnp.sum(token_share * k3(to_ref))
        if penalised(m, "loss"):
            loss_kl = m.kl_coef * jnp.sum(weights * PENALTIES[m.penalty].function(to_ref))
    metrics |= {"loss/policy": loss_policy, "loss/kl": loss_kl}
    return loss_policy + loss_kl, {name: stop_gradient(x) for name, x in metrics.items()}


def _ratio_metrics(
    level: Float[Array, "B T"],
    log_ratio: Float[Array, "B T"],
    trusted: Trusted,
    token_share: Float[Array, "B T"],
) -> dict[str, Float[Array, ""]]:
    """How far the policy has moved, and how often a bound held it."""
    ratio = jnp.exp(level)
    low = jnp.sum(jnp.where(trusted.low, token_share, 0.0))
    high = jnp.sum(jnp.where(trusted.high, token_share, 0.0))
    return {
        "ratio/mean": jnp.sum(token_share * ratio),
        "ratio/clip_fraction": low + high,
        "ratio/clip_low_fraction": low,
        "ratio/clip_high_fraction": high,
        # Masked positions have level 0, hence deviation 0.
        "ratio/deviation_max": jnp.max(jnp.abs(ratio - 1.0), initial=0.0),
        # Completions are drawn from the old policy, so k3 is taken in this direction.
        "kl/old": jnp.sum(token_share * k3(-log_ratio)),
    }


def _masked(x: Float[AnyArray, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """The array in float32 with 0 at masked positions, whatever stood there."""
    return jnp.where(mask, jnp.asarray(x).astype(jnp.float32), 0.0)


def _per_token(
    advantages: Float[AnyArray, " B"] | Float[AnyArray, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    by_row = jnp.asarray(advantages)
    by_row = by_row[:, None] if by_row.ndim == 1 else by_row
    return _masked(jnp.broadcast_to(by_row, mask.shape), mask)


def _equal_shares(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    ones = mask.astype(jnp.float32)
    return ones / jnp.maximum(jnp.sum(ones), 1.0)


def _log_ratio(logp: Float[Array, "B T"], other: Float[Array, "B T"]) -> Float[Array, "B T"]:
    return jnp.clip(logp - other, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _check(
    m: Method,
    logp: AnyArray,
    advantages: AnyArray,
    same: Mapping[str, AnyArray | None],
) -> None:
    """Refuses a missing reference, and shapes that would broadcast in silence."""
    if penalised(m, "loss") and same["ref_logp"] is None:
        raise ValueError(
            f"method {m.name!r} has penalty {m.penalty!r} with kl_coef {m.kl_coef} and needs "
            "ref_logp: pass it, or set kl_coef=0"
        )
    for name, array in same.items():
        if array is not None and array.shape != logp.shape:
            raise ValueError(
                f"{name} has shape {array.shape}, but logp has {logp.shape}; they must be equal"
            )
    if advantages.shape not in (logp.shape, logp.shape[:1]):
        raise ValueError(
            f"advantages has shape {advantages.shape}; allowed for logp {logp.shape}: "
            f"{logp.shape[:1]} or {logp.shape}"
        )
