"""COMBINE: from K reward columns, normalised one by one, to one advantage.

Letters: P prompts, G completions per prompt, K reward columns. Every choice has the signature
`Combine` and is called only where columns are left after SHAPE.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method
from jgrpo.algo.shaping import column_weights
from jgrpo.algo.side import Side
from jgrpo.algo.trackers import Multipliers

Combined: TypeAlias = Float[Array, "P G"] | Float[Array, "P G K"]
# (m, values, side, state) -> advantages
Combine: TypeAlias = Callable[[Method, Float[Array, "P G K"], Side, PyTree], Combined]


def refuse(m: Method, values: Float[Array, "P G K"], side: Side, state: PyTree) -> Combined:
    """Refuses columns: the method is defined for one reward.

    Raises:
      ValueError: always.
    """
    raise ValueError(
        f"method {m.name!r} is for one reward, got {values.shape[2]} columns: add them up first, "
        "or set shape='weighted_sum' (before the statistics) or combine='sum' (after them)"
    )


def weighted_columns(
    m: Method, values: Float[Array, "P G K"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Adds the columns' advantages, each times its weight.

    References:
      GDPO, arXiv:2601.05242; MO-GRPO, arXiv:2509.22047 (weights 1). Departs: none.
    """
    return jnp.sum(values * column_weights(m, values.shape[2]), axis=2)


def mean_columns(
    m: Method, values: Float[Array, "P G K"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Averages the columns' advantages, each times its weight.

    References:
      BNPO's advantage decomposition, arXiv:2506.02864. Departs: none.
    """
    return jnp.mean(values * column_weights(m, values.shape[2]), axis=2)


def multiplied(
    m: Method, values: Float[Array, "P G K"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """The task's advantage plus each constrained column's, times its multiplier.

    References:
      Faithful GRPO, arXiv:2604.08476. Departs: none.
    """
    if not isinstance(state, Multipliers) or state.values.shape[0] != values.shape[2] - 1:
        raise ValueError(
            f"method {m.name!r} needs one multiplier per reward column after the first "
            f"({values.shape[2] - 1}): pass state=algo.init_state(m) and as many dual_thresholds"
        )
    return values[..., 0] + jnp.sum(values[..., 1:] * jnp.asarray(state.values)[None, None], axis=2)


def kept_apart(
    m: Method, values: Float[Array, "P G K"], side: Side, state: PyTree
) -> Float[Array, "P G K"]:
    """Leaves the columns to POST."""
    return values


COMBINES: Mapping[str, Choice[Combine]] = {
    "none": Choice(function=refuse, formula="one reward"),
    "sum": Choice(
        function=weighted_columns,
        formula="A_i = sum_k w_k A_ik, w = reward_weights",
        constants=("reward_weights",),
        needs=("columns",),
        watch=("advantage/abs_mean",),
        pitfalls=("A rarely earned column is blown up by its small deviation.",),
    ),
    "mean": Choice(
        function=mean_columns,
        formula="A_i = mean_k w_k A_ik, w = reward_weights",
        constants=("reward_weights",),
        watch=("advantage/abs_mean",),
    ),
    "multipliers": Choice(
        function=multiplied,
        formula="A_i = A_i0 + sum_k lambda_k A_ik",
        needs=("columns", "state"),
        watch=("advantage/abs_mean",),
    ),
    "keep": Choice(function=kept_apart, formula="A_ik, one per item", needs=("columns",)),
}
