"""VETO: tokens or whole rows that are taken out of the policy term, as factors without gradient.

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
from jgrpo.types import AnyArray


class Tokens(NamedTuple):
    """What a veto or a correction may look at.

    Attributes:
      level: log-ratio of the LEVEL slot.
      log_ratio: logp - old_logp of each token, clamped to [-20, 20].
      mismatch: old_logp - behavior_logp of each token, clamped likewise, or None if not given.
      advantages: of each token.
      mask: True at trained tokens.
      entropy_mask: True at tokens of high entropy (`top_entropy`), or None if not given.
    """

    level: Float[Array, "B T"]
    log_ratio: Float[Array, "B T"]
    mismatch: Float[Array, "B T"] | None
    advantages: Float[Array, "B T"]
    mask: Bool[Array, "B T"]
    entropy_mask: Bool[Array, "B T"] | None = None


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


def high_entropy(m: Method, tokens: Tokens) -> Float[Array, "B T"]:
    """Trains the tokens alone before which the policy was most uncertain.

    Raises:
      ValueError: if `entropy_mask` is missing.

    References:
      Beyond the 80/20 Rule, arXiv:2506.01939. Departs: none; the entropies are those of the
      weights at the start of the step, and the quantile is that of all its tokens.
    """
    if tokens.entropy_mask is None:
        raise ValueError(
            f"method {m.name!r} has veto 'top_entropy' and needs entropy_mask, which "
            "algo.top_entropy makes of the whole batch: pass it, or set veto='none'"
        )
    return tokens.entropy_mask.astype(jnp.float32)


def top_entropy(
    m: Method, entropy: Float[AnyArray, "B T"], mask: Bool[AnyArray, "B T"]
) -> Bool[Array, "B T"]:
    """Marks the tokens whose entropy is in the top quantile of the batch.

    The threshold is the (1 - top_entropy_quantile) quantile of the trained tokens' entropies, with
    linear interpolation; tokens at the threshold are marked.

    Args:
      m: the method, for `top_entropy_quantile`.
      entropy: of the policy before each token, at the weights of the start of the step.
      mask: True at trained tokens, for every row of the global batch.

    Returns:
      False where the mask is False.

    Example:
      >>> from jgrpo.algo import method
      >>> m = method("dapo", veto="top_entropy", top_entropy_quantile=0.4)
      >>> top_entropy(m, jnp.array([[3.0, 1, 2, 4, 9]]), jnp.array([[1, 1, 1, 1, 0]]) > 0).tolist()
      [[True, False, False, True, False]]
    """
    trained = jnp.asarray(mask)
    value = jnp.where(trained, jnp.asarray(entropy).astype(jnp.float32), jnp.inf)
    ordered, last = jnp.sort(value.reshape(-1)), jnp.maximum(jnp.sum(trained) - 1, 0)
    position = last * (1.0 - m.top_entropy_quantile)
    below = jnp.floor(position).astype(jnp.int32)
    low, high = ordered[below], ordered[jnp.minimum(below + 1, last)]
    # In this form equal neighbours give exactly themselves: constant entropies are all marked.
    threshold = low + (position - below) * jnp.where(trained.any(), high - low, 0.0)
    return trained & (value >= threshold)


def _row_mean(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B 1"]:
    length = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1).astype(jnp.float32)
    return jnp.sum(x, axis=1, keepdims=True) / length


def _log(bound: float) -> Float[Array, ""]:
    return jnp.log(jnp.float32(bound))


_WATCH = ("veto/factor_mean",)
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
    "top_entropy": Choice(
        function=high_entropy,
        formula="v_it = 1 if H_it >= the (1 - top_entropy_quantile) quantile of H over the batch,"
        " else 0; H at the old weights",
        constants=("top_entropy_quantile",),
        needs=("entropy_mask",),
        watch=(*_WATCH, "entropy/mean"),
        pitfalls=(
            "Weights still count all tokens: the loss shrinks to the marked ones' share of it.",
            "A confident model has few distinct entropies; veto/factor_mean shows the real share.",
        ),
    ),
}
