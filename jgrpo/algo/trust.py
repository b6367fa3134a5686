"""TRUST: how far one batch may move the policy. Per token, a quantity to be maximised.

Letters: B sequences, T token positions. Every choice has the signature `Trust`: method, log-ratio
of the LEVEL slot, advantages, logp and mask in; `Trusted` out. Inputs are float32, finite, and 0
where the mask is False.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.methods import Method


class Trusted(NamedTuple):
    """The surrogate of each token, and which bound acted on it.

    Attributes:
      value: to be maximised.
      low: True where the ratio was held at a bound below 1.
      high: True where the ratio was held at a bound above 1.
    """

    value: Float[Array, "B T"]
    low: Bool[Array, "B T"]
    high: Bool[Array, "B T"]


Trust: TypeAlias = Callable[
    [
        Method,
        Float[Array, "B T"],
        Float[Array, "B T"],
        Float[Array, "B T"],
        Bool[Array, "B T"],
    ],
    Trusted,
]


def clip(
    m: Method,
    level: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Trusted:
    """Never lets a token gain by moving its ratio beyond the clip range (pessimistic clip).

    min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with rho = exp(level). The gradient is
    exactly 0 on the clipped side, and that of rho A otherwise. With `dual_clip` c > 0, tokens of
    negative advantage give at least c A.

    References:
      PPO, arXiv:1707.06347; clip-higher DAPO, arXiv:2503.14476; dual clip arXiv:1912.09729.
      Departs: none.
    """
    # Written with `where`: min and clip would halve the gradient where both sides are equal.
    ratio = jnp.exp(level)
    low = (advantages < 0) & (ratio < 1.0 - m.clip_low)
    high = (advantages > 0) & (ratio > 1.0 + m.clip_high)
    held = jnp.where(low, 1.0 - m.clip_low, jnp.where(high, 1.0 + m.clip_high, ratio))
    if m.dual_clip > 0:
        dual = (advantages < 0) & (ratio > m.dual_clip)
        held = jnp.where(dual, m.dual_clip, held)
        high = high | dual
    return Trusted(held * advantages, low, high)


def cispo(
    m: Method,
    level: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Trusted:
    """Clipped importance weight without gradient, times A logp: no token loses its gradient.

    The value holds log-probs and means nothing by itself. Without truncation its gradient is that
    of the unclipped importance-weighted surrogate.

    References:
      CISPO, arXiv:2506.13585, eq. 4-7. Departs: none.
    """
    ratio = stop_gradient(jnp.exp(level))
    weight = jnp.clip(ratio, 1.0 - m.clip_low, 1.0 + m.clip_high)
    return Trusted(weight * advantages * logp, ratio < 1.0 - m.clip_low, ratio > 1.0 + m.clip_high)


def linear(
    m: Method,
    level: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Trusted:
    """A logp: REINFORCE, and maximum likelihood where A is 1. The ratio plays no part.

    References:
      Williams 1992. Departs: none.
    """
    never = jnp.zeros(mask.shape, bool)
    return Trusted(advantages * logp, never, never)


TRUSTS: Mapping[str, Choice[Trust]] = {
    "clip": Choice(
        function=clip,
        formula="phi = min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(ell);"
        " if dual_clip > 0 and A < 0: phi = max(phi, dual_clip A)",
        constants=("clip_low", "clip_high", "dual_clip"),
        watch=("ratio/clip_fraction", "ratio/clip_low_fraction", "ratio/clip_high_fraction"),
        pitfalls=(
            "With one update per step the ratio is 1 and nothing is clipped: the loss is then "
            "about 0 whatever happens, which is right.",
        ),
    ),
    "cispo": Choice(
        function=cispo,
        formula="phi = sg(clip(rho, 1 - clip_low, 1 + clip_high)) A lp, rho = exp(ell)",
        constants=("clip_low", "clip_high"),
        watch=("ratio/clip_fraction", "kl/old"),
        pitfalls=(
            "The loss value contains log-probs and says nothing about progress.",
            "clip_high bounds 1 + clip_high here; other libraries give the absolute cap.",
        ),
    ),
    "linear": Choice(
        function=linear,
        formula="phi = A lp",
        watch=("kl/old",),
        pitfalls=(
            "No correction for off-policy data: sampled completions allow one update per step.",
            "The loss value contains log-probs; for policy gradients it says nothing.",
        ),
    ),
}
