"""PENALTY: per-token estimators of the KL divergence of the policy to a reference policy.

Letters: B sequences, T token positions; u = clamp(logp - ref_logp, -20, 20), in nats. Every choice
has the signature `Penalty`. Tokens are taken to be drawn from the policy.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from jgrpo.algo.choice import Choice

Penalty: TypeAlias = Callable[[Float[Array, "B T"]], Float[Array, "B T"]]


def no_penalty(log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Zero everywhere."""
    return jnp.zeros_like(log_ratio)


def k1(log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """u: unbiased in value; as a loss its gradient is 1 and has no expectation on-policy."""
    return log_ratio


def k2(log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """u^2 / 2: its expected gradient is that of KL(policy || reference)."""
    return 0.5 * jnp.square(log_ratio)


def k3(log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """exp(-u) + u - 1 >= 0: unbiased; its expected gradient is that of KL(reference || policy).

    References:
      J. Schulman, "Approximating KL divergence", 2020. Departs: none.
    """
    return jnp.expm1(-log_ratio) + log_ratio


def k3_plus(log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """The value of k3 with the gradient of k2.

    References:
      verl's `k3+`. Departs: none.
    """
    smooth = k2(log_ratio)
    return stop_gradient(k3(log_ratio) - smooth) + smooth


PENALTIES: Mapping[str, Choice[Penalty]] = {
    "none": Choice(function=no_penalty, formula="kappa = 0"),
    "k1": Choice(
        function=k1,
        formula="kappa = u, u = lp - ref",
        constants=("kl_coef",),
        needs=("ref_logp",),
        watch=("kl/ref",),
        pitfalls=("Belongs in the reward: in the loss its expected gradient is 0 on-policy.",),
    ),
    "k2": Choice(
        function=k2,
        formula="kappa = u^2 / 2, u = lp - ref",
        constants=("kl_coef",),
        needs=("ref_logp",),
        watch=("kl/ref", "loss/kl"),
    ),
    "k3": Choice(
        function=k3,
        formula="kappa = exp(-u) + u - 1, u = lp - ref",
        constants=("kl_coef",),
        needs=("ref_logp",),
        watch=("kl/ref", "loss/kl"),
        pitfalls=(
            "Grows exponentially where the policy gives a token far less than the reference does.",
        ),
    ),
    "k3_plus": Choice(
        function=k3_plus,
        formula="kappa = exp(-u) + u - 1 in value, u^2 / 2 in gradient, u = lp - ref",
        constants=("kl_coef",),
        needs=("ref_logp",),
        watch=("kl/ref", "loss/kl"),
    ),
}
