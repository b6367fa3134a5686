"""CORRECTION: what makes up for a sampler whose log-probs are not those of the old policy.

Letters: B sequences, T token positions. Every choice has the signature of a veto: the facts about
the tokens in, non-negative factors on the policy term out, without gradient. Veto and correction
multiply. Arrays are 0 where the mask is False.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.levels import MAX_SEQUENCE_LOG_RATIO
from jgrpo.algo.row import Method
from jgrpo.algo.vetoes import Tokens, Veto, no_veto


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
    bounded = jnp.clip(total, -MAX_SEQUENCE_LOG_RATIO, MAX_SEQUENCE_LOG_RATIO)
    ratio = jnp.clip(jnp.exp(bounded), m.is_low, m.is_high)
    return jnp.broadcast_to(ratio, tokens.level.shape)


def _mismatch(m: Method, tokens: Tokens) -> Float[Array, "B T"]:
    if tokens.mismatch is None:
        raise ValueError(
            f"method {m.name!r} has correction {m.correction!r} and needs behavior_logp, the "
            "log-probs of the sampler: pass it, or set correction='none'"
        )
    return tokens.mismatch


_WATCH = ("correction/factor_mean",)
_IS = ("is_low", "is_high")
CORRECTIONS: Mapping[str, Choice[Veto]] = {
    "none": Choice(function=no_veto, formula="c = 1"),
    "is_token": Choice(
        function=is_token,
        formula="c_it = clip(exp(old_it - beh_it), is_low, is_high), beh = log-prob of the sampler",
        constants=_IS,
        needs=("behavior_logp",),
        watch=(*_WATCH, "kl/behavior"),
        pitfalls=("Without a mismatch between sampler and learner it does nothing.",),
    ),
    "is_mask": Choice(
        function=is_mask,
        formula="c_it = exp(old_it - beh_it) if within [is_low, is_high], else 0",
        constants=_IS,
        needs=("behavior_logp",),
        watch=(*_WATCH, "kl/behavior"),
    ),
    "is_sequence": Choice(
        function=is_sequence,
        formula="c_i = clip(exp(sum_t (old_it - beh_it)), is_low, is_high)",
        constants=_IS,
        needs=("behavior_logp",),
        watch=(*_WATCH, "kl/behavior"),
        pitfalls=("The ratio of a long sequence is far from 1: most rows end at a bound.",),
    ),
}
