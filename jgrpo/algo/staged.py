"""SHAPE, rewards in stages: a later part is paid only where the earlier ones hold.

Rules and letters are those of `shaping`.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side


def progressive(m: Method, rewards: Float[Array, "P G K"], side: Side) -> Float[Array, "P G"]:
    """Each column times its weight and all columns before it; those are 0 or 1.

    Progressive reward shaping: whether the call parses, has the form, how good the answer is.

    References:
      VSPO, arXiv:2512.07478. Departs: the weights .1, .1, .8 are assumed; set reward_weights.
    """
    columns = rewards.shape[2]
    if columns < 2 or len(m.reward_weights) not in (0, columns):
        raise ValueError(
            f"method {m.name!r}: shape 'progressive' takes at least 2 reward columns, and as many "
            f"reward_weights or none, got {columns} columns and {len(m.reward_weights)} weights"
        )
    weights = jnp.asarray(m.reward_weights or (1.0,) * columns, jnp.float32)
    return jnp.sum(jnp.cumprod(rewards, axis=2) * weights[None, None], axis=2)


def mgrpo_reward_main(
    m: Method, rewards: Float[Array, "P G *K"], side: Side
) -> Float[Array, "P G"]:
    """a_1 format + a_2 outcome for a completion in form, else 0.

    Columns: outcome, format. a_1 is `format_weight`, a_2 `correct_weight`.

    References:
      M-GRPO, arXiv:2511.13288. Departs: the weights are assumed.
    """
    if rewards.shape[2:] != (2,):
        raise ValueError(
            f"method {m.name!r}: shape 'format_gate' takes 2 reward columns, the outcome and the "
            f"format, got {rewards.shape[2] if rewards.ndim == 3 else 1}"
        )
    outcome, form = rewards[..., 0], rewards[..., 1]
    return jnp.where(form > 0, m.format_weight * form + m.correct_weight * outcome, 0.0)


STAGED: Mapping[str, Choice] = {
    "format_gate": Choice(
        function=mgrpo_reward_main,
        formula="R' = w_f f + w_c o if f > 0, else 0; o = outcome, f = format",
        constants=("format_weight", "correct_weight"),
        needs=("columns",),
        watch=("reward/mean", "reward/group_std"),
    ),
    "progressive": Choice(
        function=progressive,
        formula="R'_i = sum_k w_k prod_{j <= k} R_ij, w = reward_weights",
        constants=("reward_weights",),
        needs=("columns",),
        watch=("reward/mean", "reward/group_std"),
        pitfalls=("Every column but the last must be 0 or 1.",),
    ),
}
