"""SHAPE: reward transforms before the group statistics, and the KL penalty inside the reward.

Letters: P prompts, G completions per prompt. Every choice has the signature `Shape`: rewards and
side information in, rewards out. Rows that do not count (`side.valid` False) hold 0 on the way in.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.methods import Method
from jgrpo.algo.side import Side, required

Shape: TypeAlias = Callable[[Method, Float[Array, "P G"], Side], Float[Array, "P G"]]


def unshaped(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Leaves rewards as they are."""
    return rewards


def overlong(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Adds a penalty that grows linearly over the last tokens before the length limit.

    0 up to L_max - L_c tokens, then ((L_max - L_c) - n) / L_c, and -1 beyond L_max; times
    `overlong_penalty`.

    Args:
      m: reads `overlong_buffer_tokens` (L_c, tokens) and `overlong_penalty` (reward units).
      rewards: any finite range; the paper uses -1 and 1.
      side: `lengths` and `max_completion_tokens` (L_max) in tokens.

    Returns:
      Rewards, lowered by at most `overlong_penalty`.

    Raises:
      ValueError: if `lengths` or `max_completion_tokens` is missing.

    References:
      DAPO, arXiv:2503.14476, eq. 13. Departs: none.
    """
    lengths = jnp.asarray(required(side.lengths, "lengths", m)).astype(jnp.float32)
    limit = required(side.max_completion_tokens, "max_completion_tokens", m)
    free_tokens = limit - m.overlong_buffer_tokens
    excess = (lengths - free_tokens) / m.overlong_buffer_tokens
    return rewards - m.overlong_penalty * jnp.clip(excess, 0.0, 1.0)


def kl_in_reward(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Subtracts `kl_coef` times the summed k1 of the completion, sum_t (logp - ref_logp).

    Args:
      m: reads `kl_coef` (reward units per nat).
      rewards: shaped rewards.
      side: `sequence_kl`, the sum over the completion's tokens, in nats.

    Returns:
      Penalised rewards.

    Raises:
      ValueError: if `sequence_kl` is missing.

    References:
      RLOO, arXiv:2402.14740. Departs: none.
    """
    kl = jnp.asarray(required(side.sequence_kl, "sequence_kl", m)).astype(jnp.float32)
    return rewards - m.kl_coef * kl


SHAPES: Mapping[str, Choice[Shape]] = {
    "none": Choice(function=unshaped, formula="R' = R"),
    "overlong": Choice(
        function=overlong,
        formula="R' = R - overlong_penalty * clip((n - (L_max - L_c)) / L_c, 0, 1),"
        " L_c = overlong_buffer_tokens, L_max = longest completion",
        constants=("overlong_buffer_tokens", "overlong_penalty"),
        needs=("lengths",),
        watch=("completion/length_mean", "completion/clipped_fraction"),
        pitfalls=(
            "The penalty is in reward units: compare it with the spread of your rewards.",
            "The buffer must be shorter than the longest completion, or every completion is fined.",
        ),
    ),
}
