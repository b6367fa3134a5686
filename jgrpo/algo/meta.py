"""Rewards of predictions that a model makes about its own group of solutions (MASA).

Letters: P prompts, G solutions per prompt, N predictions per prompt. The predictions are made in
rollouts of their own, which form a group of their own; text is parsed by the caller.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jgrpo.types import AnyArray


def meta_rewards(
    predicted_rate: Float[AnyArray, "P N"],
    predicted_tokens: Float[AnyArray, "P N"],
    notion_score: Float[AnyArray, "P N"],
    *,
    correct: Bool[AnyArray, "P G"],
    lengths: Float[AnyArray, "P G"],
) -> Float[Array, "P N 3"]:
    """The three rewards of each prediction, as columns for the shape `column_mean`.

    Args:
      predicted_rate: predicted success rate; nan if it could not be read.
      predicted_tokens: predicted length of a solution; nan if it could not be read.
      notion_score: mean over the predicted notions of 1 if more right than wrong solutions use it,
        else 0; 0 without notions.
      correct: outcome of each solution.
      lengths: tokens of each solution.

    Returns:
      0.01^|predicted - true rate|; 1 if the predicted length lies strictly between the shortest and
      the longest right solution, else 0; the notion score.

    References:
      MASA, arXiv:2510.03259. Departs: none.

    Example:
      >>> columns = meta_rewards(
      ...     jnp.array([[0.75]]), jnp.array([[180.0]]), jnp.array([[0.5]]),
      ...     correct=jnp.array([[True, True, False, False]]),
      ...     lengths=jnp.array([[100.0, 300.0, 50.0, 900.0]]))
      >>> [round(float(x), 6) for x in columns[0, 0]], round(float(columns.mean()), 6)
      ([0.316228, 1.0, 0.5], 0.605409)
    """
    right = jnp.asarray(correct)
    rate = jnp.mean(right.astype(jnp.float32), axis=1, keepdims=True)
    guess = jnp.asarray(predicted_rate).astype(jnp.float32)
    close = jnp.where(jnp.isnan(guess), 0.0, jnp.float32(0.01) ** jnp.abs(guess - rate))
    size = jnp.asarray(lengths).astype(jnp.float32)
    shortest = jnp.min(jnp.where(right, size, jnp.inf), axis=1, keepdims=True)
    longest = jnp.max(jnp.where(right, size, -jnp.inf), axis=1, keepdims=True)
    tokens = jnp.asarray(predicted_tokens).astype(jnp.float32)
    between = (tokens > shortest) & (tokens < longest)
    notions = jnp.nan_to_num(jnp.asarray(notion_score).astype(jnp.float32))
    return jnp.stack([close, between.astype(jnp.float32), notions], axis=2)
