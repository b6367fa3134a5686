"""TRUST: how far one batch may move the policy. Per token, a quantity to be maximised.

Letters: B sequences, T token positions. Every choice has the signature `Trust`: method, log-ratio
of the LEVEL slot, advantages, logp and mask in; `Trusted` out. Inputs are float32, finite, and 0
where the mask is False.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method


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


def gmpo(
    m: Method,
    level: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Trusted:
    """Clips log-ratios on the side that the advantage rewards, then takes their mean over the row.

    A exp(mean_t d'_t): the geometric mean of the clipped ratios, the same at every token of a row.

    References:
      GMPO, arXiv:2507.20673. Departs: none.
    """
    low = (advantages < 0) & (level < -m.cliprange)
    high = (advantages > 0) & (level > m.cliprange)
    held = jnp.where(low, -m.cliprange, jnp.where(high, m.cliprange, level))
    length = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1).astype(jnp.float32)
    mean = jnp.sum(jnp.where(mask, held, 0.0), axis=1, keepdims=True) / length
    return Trusted(advantages * jnp.exp(mean), low, high)


def sapo(
    m: Method,
    level: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Trusted:
    """A smooth gate instead of a clip: 4 / tau sigmoid(tau (rho - 1)) A.

    At ratio 1 its gradient is that of rho A, whatever tau, and it fades on both sides. No bound is
    reported to act.

    References:
      SAPO, arXiv:2511.20347. Departs: none.
    """
    tau = jnp.where(advantages > 0, m.tau_pos, m.tau_neg)
    # At steepness 0 the gate is the ratio itself, but for a constant.
    steep = tau > 0
    safe = jnp.where(steep, tau, 1.0)
    away = jnp.expm1(level)
    gate = jnp.where(steep, 4.0 / safe * jax.nn.sigmoid(safe * away), away)
    never = jnp.zeros(mask.shape, bool)
    return Trusted(gate * advantages, never, never)


def vespo(
    m: Method,
    level: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Trusted:
    """Weighs A logp by W^k exp(lambda (1 - W)) without gradient, W the ratio of the level.

    References:
      VESPO, as in TRL `get_gamma_weights`. Departs: none.
    """
    good = advantages >= 0
    k = jnp.where(good, m.vespo_k_pos, m.vespo_k_neg)
    decay = jnp.where(good, m.vespo_lambda_pos, m.vespo_lambda_neg)
    # W^k e^(lambda (1 - W)), in the exponent: neither factor need be representable.
    weight = stop_gradient(jnp.exp(k * level - decay * jnp.expm1(level)))
    never = jnp.zeros(mask.shape, bool)
    return Trusted(weight * advantages * logp, never, never)


def ctpo(
    m: Method,
    level: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Trusted:
    """A pessimistic clip in log space whose bounds grow with the number of tokens so far.

    References:
      CTPO, arXiv:2605.07331, `cum-token-cumprod-la`. Departs: none.
    """
    steps = jnp.maximum(jnp.cumsum(mask, axis=1), 1).astype(jnp.float32)
    width = steps**m.clip_ratio_la_power
    below, above, dual = -m.la_clip_low * width, m.la_clip_high * width, m.la_clip_c * width
    low = (advantages < 0) & (level < below)
    high = (advantages > 0) & (level > above)
    far = (advantages < 0) & (level > dual)
    held = jnp.where(low, below, jnp.where(high, above, jnp.where(far, dual, level)))
    return Trusted(jnp.exp(held) * advantages, low, high | far)


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
    "gmpo": Choice(
        function=gmpo,
        formula="phi_it = A exp(mean_s d'_is), d' = s min(s ell, s clip(ell, -cliprange,"
        " cliprange)), s = sign A",
        constants=("cliprange",),
        watch=("ratio/clip_fraction", "ratio/clip_low_fraction", "ratio/clip_high_fraction"),
        pitfalls=("The advantage must be the same along a completion.",),
    ),
    "sapo": Choice(
        function=sapo,
        formula="phi = 4 / tau sigmoid(tau (rho - 1)) A, rho = exp(ell),"
        " tau = tau_pos if A > 0 else tau_neg",
        constants=("tau_pos", "tau_neg"),
        watch=("ratio/deviation_max", "kl/old"),
        pitfalls=("The loss value is offset by 2 A / tau; its gradient is not.",),
    ),
    "vespo": Choice(
        function=vespo,
        formula="phi = sg(W^k e^(lambda (1 - W))) A lp, W = exp(ell),"
        " k and lambda: vespo_*_pos if A >= 0 else vespo_*_neg",
        constants=("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
        watch=("ratio/deviation_max", "kl/old"),
        pitfalls=("The loss value contains log-probs and says nothing about progress.",),
    ),
    "ctpo": Choice(
        function=ctpo,
        formula="phi = min(e^ell A, e^clip(ell, -la_clip_low q, la_clip_high q) A),"
        " and max(phi, e^(la_clip_c q) A) if A < 0; q = (tokens so far)^clip_ratio_la_power",
        constants=("la_clip_low", "la_clip_high", "la_clip_c", "clip_ratio_la_power"),
        watch=("ratio/clip_fraction", "ratio/clip_low_fraction", "ratio/clip_high_fraction"),
    ),
}
