"""RESHAPE: the ratio of tokens that another law than the old policy's has drawn; never clipped.

Letters: B sequences, T token positions. Every choice has the signature `Reshape`: method, ratios
and the mask of these tokens in, ratios with gradient out. Ratios elsewhere are 1 and not read.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method

Reshape: TypeAlias = Callable[
    [Method, Float[Array, "B T"], Bool[Array, "B T"]], Float[Array, "B T"]
]
_LEAST = 1e-4


def none(m: Method, ratio: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """The ratio as it is."""
    return ratio


def offset(m: Method, ratio: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Rho / (rho + reshape_gamma): rare tokens keep their gradient, likely ones lose it.

    References:
      LUFFY, arXiv:2504.14945, policy shaping. Departs: none.
    """
    return ratio / (ratio + m.reshape_gamma)


def quantile(
    m: Method, ratio: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Rho / (rho + g), g the reshape_quantile of the completion's ratios, at least 1e-4.

    References:
      Guide, arXiv:2506.13923, `compute_policy_loss` of guide_rl. Departs: padding is left out (the
      release pools it, with ratio 1).
    """
    values = jnp.where(mask, stop_gradient(ratio), jnp.nan)
    some = mask.any(axis=1, keepdims=True)
    found = jnp.nanquantile(jnp.where(some, values, 1.0), m.reshape_quantile, axis=1, keepdims=True)
    return ratio / (ratio + jnp.maximum(found, _LEAST))


def power(m: Method, ratio: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Rho ** reshape_gamma."""
    return jnp.exp(m.reshape_gamma * jnp.log(ratio))


RESHAPES: Mapping[str, Choice[Reshape]] = {
    "none": Choice(function=none, formula="phi = rho A where another law drew the token"),
    "offset": Choice(
        function=offset,
        formula="phi = rho / (rho + reshape_gamma) A where another law drew the token",
        constants=("reshape_gamma",),
    ),
    "quantile": Choice(
        function=quantile,
        formula="phi = rho / (rho + g) A where another law drew the token,"
        " g = sg(quantile of the completion's rho at reshape_quantile)",
        constants=("reshape_quantile",),
    ),
    "power": Choice(
        function=power,
        formula="phi = rho^reshape_gamma A where another law drew the token",
        constants=("reshape_gamma",),
    ),
}
