"""Returns and advantages along a completion: generalised advantage estimation and value losses.

Letters: B completions, T token positions. A masked position is not a step: values and discounts
pass over it. Everything is float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jgrpo.types import AnyArray


def gae(
    rewards: Float[AnyArray, "B T"],
    values: Float[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Advantages A_t = sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t.

    Args:
      rewards: of each token.
      values: predicted return before each token; 0 everywhere and gae_lambda 1 give plain returns.
      mask: True at the steps.
      gamma: discount of later rewards, per step.
      gae_lambda: decay of later errors, per step.

    Returns:
      Advantages, and the returns that a critic should predict (advantages + values); 0 where the
      mask is False.

    References:
      PPO, arXiv:1707.06347. Departs: none.

    Example:
      >>> one = jnp.ones((1, 2))
      >>> advantages, returns = gae(one, 0.5 * one, one > 0, gae_lambda=1.0)
      >>> advantages.tolist(), returns.tolist()
      ([[1.5, 0.5]], [[2.0, 1.0]])
    """
    steps = jnp.asarray(mask)
    reward = jnp.where(steps, jnp.asarray(rewards).astype(jnp.float32), 0.0)
    value = jnp.where(steps, jnp.asarray(values).astype(jnp.float32), 0.0)

    def backwards(
        later: tuple[Float[Array, " B"], Float[Array, " B"]],
        now: tuple[Float[Array, " B"], Float[Array, " B"], Bool[Array, " B"]],
    ) -> tuple[tuple[Float[Array, " B"], Float[Array, " B"]], Float[Array, " B"]]:
        next_advantage, next_value = later
        reward_B, value_B, step_B = now
        delta = reward_B + gamma * next_value - value_B
        advantage = jnp.where(step_B, delta + gamma * gae_lambda * next_advantage, next_advantage)
        return (advantage, jnp.where(step_B, value_B, next_value)), advantage

    zero = jnp.zeros(reward.shape[0], jnp.float32)
    _, advantages = jax.lax.scan(
        backwards, (zero, zero), (reward.T, value.T, steps.T), reverse=True
    )
    advantages = jnp.where(steps, advantages.T, 0.0)
    return advantages, jnp.where(steps, advantages + value, 0.0)


def value_loss(
    values: Float[AnyArray, "B T"],
    *,
    old_values: Float[AnyArray, "B T"],
    returns: Float[AnyArray, "B T"],
    weights: Float[AnyArray, "B T"],
    value_clip: float = 0.2,
) -> Float[Array, ""]:
    """Half the squared error of a critic, which may not gain by moving beyond the clip range.

    Args:
      values: predictions to be trained.
      old_values: predictions at the start of the step.
      returns: what they should be, from `gae`.
      weights: weight of each token, as `token_weights` gives them; 0 at masked positions.
      value_clip: range around the old prediction, in reward units; 0: no bound.

    Returns:
      The weighted sum of 0.5 max((V - R)^2, (clip(V, old +- value_clip) - R)^2).

    References:
      Public PPO code (the paper's appendix leaves it open). Departs: none.
    """
    weight = jnp.asarray(weights).astype(jnp.float32)
    trained = weight > 0
    value, old, goal = (
        jnp.where(trained, jnp.asarray(x).astype(jnp.float32), 0.0)
        for x in (values, old_values, returns)
    )
    error = jnp.square(value - goal)
    if value_clip > 0:
        near = jnp.clip(value, old - value_clip, old + value_clip)
        error = jnp.maximum(error, jnp.square(near - goal))
    return 0.5 * jnp.sum(jnp.where(trained, weight * error, 0.0))
