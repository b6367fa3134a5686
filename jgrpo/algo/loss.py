"""The loss of any method: a weighted sum over tokens, with the slots filled by the method's row.

Letters: B sequences, T token positions. This file knows no method by name and calls no model:
log-probs arrive computed. Everything is float32 inside, whatever the inputs are. Positions where
the mask is False may hold anything, nan included; they get a gradient of exactly 0.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from jgrpo.algo.choice import chosen
from jgrpo.algo.constraints import BONUSES, CONSTRAINTS, hinge
from jgrpo.algo.levels import LEVELS
from jgrpo.algo.penalties import PENALTIES, k3
from jgrpo.algo.row import Method
from jgrpo.algo.slots import penalised
from jgrpo.algo.trust import TRUSTS, Trusted
from jgrpo.algo.vetoes import VETOES, Tokens
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
    behavior_logp: Float[AnyArray, "B T"] | None = None,
    entropy: Float[AnyArray, "B T"] | None = None,
    constraint_scale: Float[AnyArray, ""] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum over tokens of weight * (-veto * surrogate + kl_coef * penalty), to be minimised.

    For a microbatch, pass its rows of the weights and token shares of the whole batch: losses,
    gradients and metrics of the parts then add up exactly.

    Args:
      m: the method.
      logp: log-probs (nats) of the completion tokens under the policy; differentiate by this.
      old_logp: the same at the start of the step; for worked solutions logp without gradient.
      mask: True at trained tokens.
      advantages: one per sequence or one per token.
      ref_logp: log-probs under the reference policy, if the loss penalises distance to it.
      weights: weight of each token; default `token_weights(m, mask)`.
      token_share: weight of each token in the metrics; default mask / number of tokens.
      segments: segment id of each token, for levels that compare segments.
      behavior_logp: log-probs that the sampler drew the tokens at, for vetoes on the mismatch.
      entropy: of the policy before each token, in nats and with gradient, for an entropy bonus.
      constraint_scale: what the function of that name gives for the whole batch; default: what it
        gives for the tokens here, which is wrong for a microbatch.

    Returns:
      The loss, and metrics without gradient. Metrics of microbatches combine by addition, those
      whose name ends in `_max` by the maximum. `ratio/*` are of the level's ratio; `kl/old` is the
      k3 estimate of KL(old || policy), `kl/ref` that of KL(policy || reference).

    Raises:
      ValueError: if a shape does not fit, or something the method needs is missing.
    """
    same = {"old_logp": old_logp, "mask": mask, "ref_logp": ref_logp, "weights": weights}
    same |= {"token_share": token_share, "segments": segments, "behavior_logp": behavior_logp}
    _check(m, logp, advantages, same | {"entropy": entropy})
    mask = jnp.asarray(mask)
    logp, old = _masked(logp, mask), _masked(old_logp, mask)
    weights = _masked(token_weights(m, mask) if weights is None else weights, mask)
    token_share = _masked(_equal_shares(mask) if token_share is None else token_share, mask)
    facts = _facts(m, logp, old, mask, _per_token(advantages, mask), segments, behavior_logp)
    trusted = chosen(TRUSTS, m.trust).function(m, facts.level, facts.advantages, logp, mask)
    factor = stop_gradient(chosen(VETOES, m.veto).function(m, facts))
    terms = {"loss/policy": -jnp.sum(weights * (factor * trusted.value))}
    terms |= _further_terms(m, facts, weights, token_share, entropy, constraint_scale)
    metrics = _ratio_metrics(m, facts, trusted, factor, token_share)
    penalty, distance = _reference(m, logp, ref_logp, mask, weights, token_share)
    terms, metrics = terms | penalty, metrics | distance
    loss = sum(terms.values(), start=jnp.zeros((), jnp.float32))
    return loss, {name: stop_gradient(x) for name, x in (metrics | terms).items()}


def _reference(
    m: Method,
    logp: Float[Array, "B T"],
    ref_logp: Float[AnyArray, "B T"] | None,
    mask: Bool[Array, "B T"],
    weights: Float[Array, "B T"],
    token_share: Float[Array, "B T"],
) -> tuple[dict[str, Float[Array, ""]], dict[str, Float[Array, ""]]]:
    """The penalty on the distance to the reference policy, and that distance as a metric."""
    none = {"loss/kl": jnp.zeros((), jnp.float32)}
    if ref_logp is None:
        return none, {}
    to_ref = _log_ratio(logp, _masked(ref_logp, mask))
    distance = {"kl/ref": jnp.sum(token_share * k3(to_ref))}
    if not penalised(m, "loss"):
        return none, distance
    penalty = chosen(PENALTIES, m.penalty).function(to_ref)
    return {"loss/kl": m.kl_coef * jnp.sum(weights * penalty)}, distance


def _further_terms(
    m: Method,
    facts: Tokens,
    weights: Float[Array, "B T"],
    token_share: Float[Array, "B T"],
    entropy: Float[AnyArray, "B T"] | None,
    constraint_scale: Float[AnyArray, ""] | None,
) -> dict[str, Float[Array, ""]]:
    """Entropy bonus and constraint, if the method has them."""
    terms = {}
    if m.bonus != "none" and entropy is not None:
        bonus = chosen(BONUSES, m.bonus).function(m, _masked(entropy, facts.mask))
        terms["loss/bonus"] = -jnp.sum(weights * bonus)
    if m.constraint != "none":
        each = chosen(CONSTRAINTS, m.constraint).function(m, facts.log_ratio)
        drift = jnp.sum(token_share * each)
        factor = hinge(m, drift) if constraint_scale is None else jnp.asarray(constraint_scale)
        terms["loss/constraint"] = stop_gradient(factor) * drift
    return terms


def _facts(
    m: Method,
    logp: Float[Array, "B T"],
    old: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    advantages: Float[Array, "B T"],
    segments: Int[AnyArray, "B T"] | None,
    behavior_logp: Float[AnyArray, "B T"] | None,
) -> Tokens:
    """Log-ratios of the tokens to the old policy, in the method's unit too, and to the sampler."""
    log_ratio = _log_ratio(logp, old)
    ids = None if segments is None else jnp.asarray(segments)
    level = chosen(LEVELS, m.level).function(log_ratio, logp, mask, ids)
    gap = None if behavior_logp is None else _log_ratio(old, _masked(behavior_logp, mask))
    return Tokens(jnp.where(mask, level, 0.0), log_ratio, gap, advantages, mask)


def _ratio_metrics(
    m: Method,
    facts: Tokens,
    trusted: Trusted,
    factor: Float[Array, "B T"],
    token_share: Float[Array, "B T"],
) -> dict[str, Float[Array, ""]]:
    """How far the policy has moved, and how often a bound held it."""
    ratio = jnp.exp(facts.level)
    low = jnp.sum(jnp.where(trusted.low, token_share, 0.0))
    high = jnp.sum(jnp.where(trusted.high, token_share, 0.0))
    vetoed = {} if m.veto == "none" else {"veto/factor_mean": jnp.sum(token_share * factor)}
    return {
        "ratio/mean": jnp.sum(token_share * ratio),
        "ratio/clip_fraction": low + high,
        "ratio/clip_low_fraction": low,
        "ratio/clip_high_fraction": high,
        # Masked positions have level 0, hence deviation 0.
        "ratio/deviation_max": jnp.max(jnp.abs(ratio - 1.0), initial=0.0),
        # Completions are drawn from the old policy, so k3 is taken in this direction.
        "kl/old": jnp.sum(token_share * k3(-facts.log_ratio)),
        **vetoed,
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
    """Refuses what is missing, and shapes that would broadcast in silence."""
    if penalised(m, "loss") and same["ref_logp"] is None:
        raise ValueError(
            f"method {m.name!r} has penalty {m.penalty!r} with kl_coef {m.kl_coef} and needs "
            "ref_logp: pass it, or set kl_coef=0"
        )
    if m.bonus == "entropy" and same["entropy"] is None:
        raise ValueError(
            f"method {m.name!r} has bonus 'entropy' and needs entropy: pass it, or set bonus='none'"
        )
    if m.late != "none" and advantages.ndim == 1:
        raise ValueError(
            f"method {m.name!r} couples the completions of a group (late {m.late!r}): pass the "
            "advantages [B, T] of algo.late_advantages"
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
