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
from jgrpo.algo.corrections import CORRECTIONS
from jgrpo.algo.levels import LEVELS, token_log_ratio
from jgrpo.algo.penalties import PENALTIES, k3, penalised
from jgrpo.algo.reshapes import RESHAPES
from jgrpo.algo.row import Method
from jgrpo.algo.trust import TRUSTS, Trusted
from jgrpo.algo.vetoes import VETOES, Tokens
from jgrpo.algo.weights import token_weights
from jgrpo.types import AnyArray


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
    entropy_mask: Bool[AnyArray, "B T"] | None = None,
    off_policy: Bool[AnyArray, "B T"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum over tokens of weight * (-veto * correction * surrogate + kl_coef * penalty); minimise.

    Microbatches add up exactly if they get their rows of the whole batch's weights and shares.

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
      behavior_logp: log-probs that the sampler drew the tokens at, for a correction.
      entropy: of the policy before each token, in nats and with gradient, for an entropy bonus.
      constraint_scale: from the function of that name on the whole batch; default: on these rows.
      entropy_mask: True at the tokens that `top_entropy` marks in the whole batch, for that veto.
      off_policy: True at tokens that another law drew, whose log-prob `old_logp` is there.

    Returns:
      The loss, and metrics without gradient: of microbatches they add up (`_max`: the maximum).
      `ratio/*` are of the level's ratio; `kl/*` are k3 estimates.

    Raises:
      ValueError: if a shape does not fit, or something the method needs is missing.
    """
    same = {"old_logp": old_logp, "mask": mask, "ref_logp": ref_logp, "weights": weights}
    same |= {"token_share": token_share, "entropy": entropy, "off_policy": off_policy}
    tokens = {"segments": segments, "behavior_logp": behavior_logp, "entropy_mask": entropy_mask}
    _check(m, logp, advantages, same | tokens)
    mask = jnp.asarray(mask)
    logp, old = _masked(logp, mask), _masked(old_logp, mask)
    weights = _masked(token_weights(m, mask) if weights is None else weights, mask)
    token_share = _masked(_equal_shares(mask) if token_share is None else token_share, mask)
    facts = _facts(m, logp, old, mask, _per_token(advantages, mask), **tokens)
    facts, trusted = _surrogate(m, facts, logp, off_policy)
    veto, correction = _factors(m, facts)
    terms = {"loss/policy": -jnp.sum(weights * (veto * correction * trusted.value))}
    penalty, distance = _reference(m, logp, ref_logp, mask, weights, token_share)
    terms |= _further_terms(m, facts, weights, token_share, entropy, constraint_scale) | penalty
    metrics = _ratio_metrics(m, facts, trusted, veto, correction, token_share) | distance | terms
    return _total(terms), {name: stop_gradient(x) for name, x in metrics.items()}


def _total(terms: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
    return sum(terms.values(), start=jnp.zeros((), jnp.float32))


def _surrogate(
    m: Method,
    facts: Tokens,
    logp: Float[Array, "B T"],
    marked: Bool[AnyArray, "B T"] | None,
) -> tuple[Tokens, Trusted]:
    """The surrogate, with reshaped ratios of marked tokens in place of bounded ones.

    These count as unmoved: metrics are of the other tokens.
    """
    arguments = (facts.level, facts.advantages, logp, facts.mask)
    trusted = chosen(TRUSTS, m.trust).function(m, *arguments)
    if marked is None:
        return facts, trusted
    off_policy = facts.mask & jnp.asarray(marked)
    ratio = jnp.exp(jnp.where(off_policy, facts.log_ratio, 0.0))
    reshaped = chosen(RESHAPES, m.reshape).function(m, ratio, off_policy)
    value = jnp.where(off_policy, reshaped * facts.advantages, trusted.value)
    still = lambda x: jnp.where(off_policy, 0.0, x)  # noqa: E731
    facts = facts._replace(level=still(facts.level), log_ratio=still(facts.log_ratio))
    return facts, Trusted(value, trusted.low & ~off_policy, trusted.high & ~off_policy)


def _factors(m: Method, facts: Tokens) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """What the veto and the correction multiply the surrogate by, without gradient."""
    veto = chosen(VETOES, m.veto).function(m, facts)
    correction = chosen(CORRECTIONS, m.correction).function(m, facts)
    return stop_gradient(veto), stop_gradient(correction)


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
    to_ref = token_log_ratio(logp, _masked(ref_logp, mask))
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
    entropy_mask: Bool[AnyArray, "B T"] | None,
) -> Tokens:
    """Log-ratios of the tokens to the old policy, in the method's unit too, and to the sampler."""
    log_ratio = token_log_ratio(logp, old)
    ids = None if segments is None else jnp.asarray(segments)
    level = chosen(LEVELS, m.level).function(log_ratio, logp, mask, ids)
    gap = None if behavior_logp is None else token_log_ratio(old, _masked(behavior_logp, mask))
    marked = None if entropy_mask is None else mask & jnp.asarray(entropy_mask)
    return Tokens(jnp.where(mask, level, 0.0), log_ratio, gap, advantages, mask, marked)


def _ratio_metrics(
    m: Method,
    facts: Tokens,
    trusted: Trusted,
    veto: Float[Array, "B T"],
    correction: Float[Array, "B T"],
    token_share: Float[Array, "B T"],
) -> dict[str, Float[Array, ""]]:
    """How far the policy has moved, and how often a bound held it."""
    ratio = jnp.exp(facts.level)
    low = jnp.sum(jnp.where(trusted.low, token_share, 0.0))
    high = jnp.sum(jnp.where(trusted.high, token_share, 0.0))
    means = {
        f"{slot}/factor_mean": jnp.sum(token_share * factor)
        for slot, factor in (("veto", veto), ("correction", correction))
        if getattr(m, slot) != "none"
    }
    return {
        "ratio/mean": jnp.sum(token_share * ratio),
        "ratio/variance": jnp.sum(token_share * jnp.square(ratio - 1.0)),
        "ratio/clip_fraction": low + high,
        "ratio/clip_low_fraction": low,
        "ratio/clip_high_fraction": high,
        # Masked positions have level 0, hence deviation 0.
        "ratio/deviation_max": jnp.max(jnp.abs(ratio - 1.0), initial=0.0),
        # Completions are drawn from the old policy, so k3 is taken in this direction.
        "kl/old": jnp.sum(token_share * k3(-facts.log_ratio)),
        **means,
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
