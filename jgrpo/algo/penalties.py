"""PENALTY: per-token estimators of the KL divergence of the policy to a reference policy.

Letters: P prompts, G completions per prompt, B sequences, T token positions; u = clamp(logp -
ref_logp, -20, 20), in nats. Every choice has the signature `Penalty`. Tokens are taken to be drawn
from the policy. In the loss a penalty has the gradient of its formula; in the reward it is a number
that multiplies the gradient of log-probs, so the same estimator has another expected gradient.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.levels import MAX_LOG_RATIO
from jgrpo.algo.row import Method
from jgrpo.types import AnyArray

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


def token_penalty(m: Method, log_ratio: Float[AnyArray, "P G T"]) -> Float[Array, "P G T"]:
    """The method's penalty of each token, in nats, as rewards are lowered by it.

    Args:
      m: the method, for its `penalty`.
      log_ratio: old_logp - ref_logp of each token.
    """
    u = jnp.asarray(log_ratio).astype(jnp.float32)
    bounded = jnp.clip(u, -MAX_LOG_RATIO, MAX_LOG_RATIO).reshape(-1, u.shape[-1])
    return chosen(PENALTIES, m.penalty).function(bounded).reshape(u.shape)


def sequence_kl(
    m: Method, log_ratio: Float[AnyArray, "P G T"], mask: Bool[AnyArray, "P G T"]
) -> Float[Array, "P G"]:
    """The method's penalty summed over each completion: `Side.sequence_kl` for `kl_in` reward.

    Args:
      m: the method, for its `penalty`.
      log_ratio: old_logp - ref_logp of each token, in nats.
      mask: True at trained tokens.

    Example:
      >>> from jgrpo.algo import method
      >>> m = method("rloo", penalty="k2")
      >>> float(sequence_kl(m, jnp.array([[[1.0, -2.0, 9.0]]]), jnp.array([[[1, 1, 0]]]) > 0)[0, 0])
      2.5
    """
    steps = jnp.asarray(mask)
    u = jnp.where(steps, jnp.asarray(log_ratio), 0.0)
    return jnp.sum(jnp.where(steps, token_penalty(m, u), 0.0), axis=2)


_IN_REWARD = "Belongs in the loss: in the reward its gradient nearly vanishes near the reference."
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
        pitfalls=(_IN_REWARD,),
    ),
    "k3": Choice(
        function=k3,
        formula="kappa = exp(-u) + u - 1, u = lp - ref",
        constants=("kl_coef",),
        needs=("ref_logp",),
        watch=("kl/ref", "loss/kl"),
        pitfalls=(
            "Grows exponentially where the policy gives a token far less than the reference does.",
            _IN_REWARD,
        ),
    ),
    "k3_plus": Choice(
        function=k3_plus,
        formula="kappa = exp(-u) + u - 1 in value, u^2 / 2 in gradient, u = lp - ref",
        constants=("kl_coef",),
        needs=("ref_logp",),
        watch=("kl/ref", "loss/kl"),
        pitfalls=(_IN_REWARD,),
    ),
}


def penalised(m: Method, where: str) -> bool:
    """True if a KL penalty acts there: in the `loss`, the `reward` or the `token_reward`."""
    return m.kl_in == where and m.penalty != "none" and m.kl_coef > 0
