"""VETO: factors without gradient on the policy term of single tokens or whole rows.

Letters: B sequences, T token positions. Every choice has the signature `Veto`: the facts about the
tokens in, non-negative factors out. Penalties are not affected, nor are the denominators of
WEIGHTS. Arrays are 0 where the mask is False.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method


class Tokens(NamedTuple):
    """What a veto may look at.

    Attributes:
      level: log-ratio of the LEVEL slot.
      log_ratio: logp - old_logp of each token, clamped to [-20, 20].
      mismatch: old_logp - behavior_logp of each token, clamped likewise, or None if not given.
      advantages: of each token.
      mask: True at trained tokens.
    """

    level: Float[Array, "B T"]
    log_ratio: Float[Array, "B T"]
    mismatch: Float[Array, "B T"] | None
    advantages: Float[Array, "B T"]
    mask: Bool[Array, "B T"]


Veto: TypeAlias = Callable[[Method, Tokens], Float[Array, "B T"]]


def no_veto(m: Method, tokens: Tokens) -> Float[Array, "B T"]:
    """1 everywhere."""
    return jnp.ones_like(tokens.level)


def suffix(m: Method, tokens: Tokens) -> Float[Array, "B T"]:
    """Drops, where the advantage is negative, the tokens after one whose ratio left the range.

    References:
      Mu-GRPO, arXiv:2605.17570. Departs: reconstructed from the abstract; trigger and thresholds
      are assumed, and the trigger token itself is kept.
    """
    low = tokens.log_ratio < _log(m.trigger_low)
    high = tokens.log_ratio > (_log(m.trigger_high) if m.trigger_high > 0 else jnp.inf)
    trigger = tokens.mask & (low | high)
    before = jnp.cumsum(trigger, axis=1) - trigger.astype(jnp.int32)
    return jnp.where((tokens.advantages < 0) & (before > 0), 0.0, 1.0)


def off_policy_row(m: Method, tokens: Tokens) -> Float[Array, "B T"]:
    """Drops rows of negative advantage that the policy has moved away from.

    A token counts if A >= 0 or the row's mean of old_logp - logp is at most `off_policy_delta`.

    References:
      DeepSeek-V3.2's off-policy sequence mask, as in TRL. Departs: none.
    """
    drift = -_row_mean(tokens.log_ratio, tokens.mask)
    return jnp.where((tokens.advantages >= 0) | (drift <= m.off_policy_delta), 1.0, 0.0)


def is_token(m: Method, tokens: Tokens) -> Float[Array, "B T"]:
    """Truncated importance sampling: the ratio of old policy to sampler, clipped, per token.

    References:
      TIS, as in C-GRPO (CaRR, [0.5, 2]). Departs: none.
    """
    return jnp.clip(jnp.exp(_mismatch(m, tokens)), m.is_low, m.is_high)


def is_mask(m: Method, tokens: Tokens) -> Float[Array, "B T"]:
    """The ratio of old policy to sampler, 0 where it is out of bounds.

    References:
      Masked importance sampling of public code. Departs: none.
    """
    ratio = jnp.exp(_mismatch(m, tokens))
    return jnp.where((ratio >= m.is_low) & (ratio <= m.is_high), ratio, 0.0)


def is_sequence(m: Method, tokens: Tokens) -> Float[Array, "B T"]:
    """The ratio of old policy to sampler of the whole sequence, clipped.

    References:
      CTPO's sequence threshold, arXiv:2605.07331. Departs: none.
    """
    total = jnp.sum(_mismatch(m, tokens), axis=1, keepdims=True)
    ratio = jnp.clip(jnp.exp(jnp.clip(total, -20.0, 20.0)), m.is_low, m.is_high)
    return jnp.broadcast_to(ratio, tokens.level.shape)


def _mismatch(m: Method, tokens: Tokens) -> Float[Array, "B T"]:
    if tokens.mismatch is None:
        raise ValueError(
            f"method {m.name!r} has veto {m.veto!r} and needs behavior_logp, the log-probs of the "
            "sampler: pass it, or set veto='none'"
        )
    return tokens.mismatch


def _row_mean(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B 1"]:
    length = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1).astype(jnp.float32)
    return jnp.sum(x, axis=1, keepdims=True) / length


def _log(bound: float) -> Float[Array, ""]:
    return jnp.log(jnp.float32(bound))


_WATCH = ("veto/factor_mean",)
_IS = ("is_low", "is_high")
VETOES: Mapping[str, Choice[Veto]] = {
    "none": Choice(function=no_veto, formula="v = 1"),
    "suffix": Choice(
        function=suffix,
        formula="v_it = 0 if A < 0 and some s < t has e^d < trigger_low or e^d > trigger_high (if"
        " not 0), else 1",
        constants=("trigger_low", "trigger_high"),
        watch=_WATCH,
    ),
    "off_policy_row": Choice(
        function=off_policy_row,
        formula="v_i = 1 if A >= 0 or mean_t (old - lp) <= off_policy_delta, else 0",
        constants=("off_policy_delta",),
        watch=_WATCH,
    ),
    "is_token": Choice(
        function=is_token,
        formula="v_it = clip(exp(old_it - beh_it), is_low, is_high), beh = log-prob of the sampler",
        constants=_IS,
        needs=("behavior_logp",),
        watch=(*_WATCH, "kl/behavior"),
        pitfalls=("Without a mismatch between sampler and learner it does nothing.",),
    ),
    "is_mask": Choice(
        function=is_mask,
        formula="v_it = exp(old_it - beh_it) if within [is_low, is_high], else 0",
        constants=_IS,
        needs=("behavior_logp",),
        watch=(*_WATCH, "kl/behavior"),
    ),
    "is_sequence": Choice(
        function=is_sequence,
        formula="v_i = clip(exp(sum_t (old_it - beh_it)), is_low, is_high)",
        constants=_IS,
        needs=("behavior_logp",),
        watch=(*_WATCH, "kl/behavior"),
        pitfalls=("The ratio of a long sequence is far from 1: most rows end at a bound.",),
    ),
}
