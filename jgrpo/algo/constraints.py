"""CONSTRAINT and BONUS: a bound on the drift of a whole batch, and what is paid besides advantage.

Letters: B sequences, T token positions. A constraint gives each token's share of the drift D of the
policy from the old one; the loss gets sg(constraint_beta max(D - constraint_delta, 0)) D, which has
the gradient of a squared hinge. Its factor is one scalar of the whole batch: `constraint_scale`
computes it in a pass without gradient, and with it microbatches add up exactly.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.levels import token_log_ratio
from jgrpo.algo.penalties import k3
from jgrpo.algo.row import Method
from jgrpo.types import AnyArray

# (m, logp - old_logp of each token) -> drift of each token, in nats
Constraint: TypeAlias = Callable[[Method, Float[Array, "B T"]], Float[Array, "B T"]]
# (m, entropy of each token) -> what is added to the surrogate
Bonus: TypeAlias = Callable[[Method, Float[Array, "B T"]], Float[Array, "B T"]]


def constraint_scale(
    m: Method,
    logp: Float[AnyArray, "B T"],
    *,
    old_logp: Float[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
) -> Float[Array, ""]:
    """The factor of the drift in the loss, from the whole batch of an update, without gradient.

    Args:
      m: the method.
      logp: log-probs (nats) under the policy.
      old_logp: the same under the weights at the start of the step.
      mask: True at trained tokens.

    Returns:
      constraint_beta max(D - constraint_delta, 0); 0 without a constraint.
    """
    return stop_gradient(hinge(m, drift(m, logp, old_logp=old_logp, mask=mask)))


def drift(
    m: Method,
    logp: Float[AnyArray, "B T"],
    *,
    old_logp: Float[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
) -> Float[Array, ""]:
    """The drift D of the policy from the old one: its constraint's mean over the trained tokens.

    Args:
      m: the method.
      logp: log-probs (nats) under the policy; D may be differentiated by this.
      old_logp: the same under the weights at the start of the step.
      mask: True at trained tokens.

    Returns:
      D in nats per token; 0 without a constraint.
    """
    steps = jnp.asarray(mask)
    now, old = (jnp.where(steps, jnp.asarray(x).astype(jnp.float32), 0.0) for x in (logp, old_logp))
    share = steps.astype(jnp.float32)
    share = share / jnp.maximum(jnp.sum(share), 1.0)
    each = chosen(CONSTRAINTS, m.constraint).function(m, token_log_ratio(now, old))
    return jnp.sum(share * each)


def hinge(m: Method, drifted: Float[Array, ""]) -> Float[Array, ""]:
    """constraint_beta max(drifted - constraint_delta, 0)."""
    return m.constraint_beta * jnp.maximum(drifted - m.constraint_delta, 0.0)


def unconstrained(m: Method, log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """No drift."""
    return jnp.zeros_like(log_ratio)


def drift_k1(m: Method, log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """old_logp - logp: unbiased for KL(old || policy), and negative by chance.

    References:
      DisCO, arXiv:2505.12366. Departs: none (the code's gradient, which is half the paper's).
    """
    return -log_ratio


def drift_k3(m: Method, log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """The k3 estimate of KL(old || policy), never negative.

    References:
      DisCO's `low_var_kl`, arXiv:2505.12366. Departs: none.
    """
    return k3(-log_ratio)


def no_bonus(m: Method, entropy: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Zero everywhere."""
    return jnp.zeros_like(entropy)


def entropy_bonus(m: Method, entropy: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """`entropy_coef` times the entropy of the policy before each token.

    References:
      Mnih et al. 2016, arXiv:1602.01783. Departs: none.
    """
    return m.entropy_coef * entropy


_HINGE = ("constraint_delta", "constraint_beta")
CONSTRAINTS: Mapping[str, Choice[Constraint]] = {
    "none": Choice(function=unconstrained, formula="C = 0"),
    "hinge_k1": Choice(
        function=drift_k1,
        formula="C = sg(constraint_beta max(D - constraint_delta, 0)) D,"
        " D = mean of old - lp over the tokens of the batch",
        constants=_HINGE,
        needs=("constraint_scale",),
        watch=("loss/constraint", "kl/old"),
        pitfalls=("D may be negative by chance; the constraint then rests.",),
    ),
    "hinge_k3": Choice(
        function=drift_k3,
        formula="C = sg(constraint_beta max(D - constraint_delta, 0)) D,"
        " D = mean of exp(d) - d - 1 over the tokens of the batch",
        constants=_HINGE,
        needs=("constraint_scale",),
        watch=("loss/constraint", "kl/old"),
    ),
}
BONUSES: Mapping[str, Choice[Bonus]] = {
    "none": Choice(function=no_bonus, formula="no bonus"),
    "entropy": Choice(
        function=entropy_bonus,
        formula="loss - sum_it w_it entropy_coef H_it, H = entropy of the policy",
        constants=("entropy_coef",),
        needs=("entropy",),
        watch=("entropy/mean", "loss/bonus"),
        pitfalls=("Too large a coefficient rewards noise: watch entropy/mean rise.",),
    ),
}
