"""SAMPLER, the part that is arithmetic: which sampled groups are worth training.

Letters: P prompts, G completions per prompt, M prompts of the data set. Every choice has the
signature `Keep`. Drawing prompts and refilling the batch is the loop's work; the functions at the
end are the rules of further samplers, for loops that draw by them.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side
from jgrpo.types import AnyArray

# (m, outcomes, valid) -> groups to train
Keep: TypeAlias = Callable[[Method, Float[Array, "P G"], Bool[Array, "P G"]], Bool[Array, " P"]]


def dynamic_keep(
    m: Method, rewards: Float[AnyArray, "P G"], side: Side | None = None
) -> Bool[Array, " P"]:
    """Which groups the method's sampler keeps.

    Args:
      m: the method.
      rewards: as scored, before any shaping: a length penalty would make every group look mixed.
      side: `correct`, if given, is what is compared instead; rows not in `valid` are ignored.

    Returns:
      True for groups to train. With sampler `uniform` all of them.

    References:
      DAPO, arXiv:2503.14476, section 3.2. Departs: a group of one valid row is dropped, since it
      has advantage 0 (verl keeps it).
    """
    side = Side() if side is None else side
    outcomes = jnp.asarray(rewards if side.correct is None else side.correct).astype(jnp.float32)
    valid = jnp.ones(outcomes.shape, bool) if side.valid is None else jnp.asarray(side.valid)
    return chosen(SAMPLERS, m.sampler).function(m, outcomes, valid)


def keep_all(
    m: Method, outcomes: Float[Array, "P G"], valid: Bool[Array, "P G"]
) -> Bool[Array, " P"]:
    """Keeps every group."""
    return jnp.ones(outcomes.shape[0], bool)


def keep_mixed(
    m: Method, outcomes: Float[Array, "P G"], valid: Bool[Array, "P G"]
) -> Bool[Array, " P"]:
    """Keeps groups whose valid outcomes are not all equal."""
    highest = jnp.max(jnp.where(valid, outcomes, -jnp.inf), axis=1)
    lowest = jnp.min(jnp.where(valid, outcomes, jnp.inf), axis=1)
    return highest > lowest


def keep_unsolved(
    m: Method, outcomes: Float[Array, "P G"], valid: Bool[Array, "P G"]
) -> Bool[Array, " P"]:
    """Keeps groups with at least one valid outcome below `max_reward`.

    References:
      NGRPO, arXiv:2509.18851, `all_correct`. Departs: none.
    """
    return jnp.any(valid & (outcomes < m.max_reward), axis=1)


def uncertainty_weights(
    values: Float[AnyArray, " M"], exploration_epsilon: float = 0.05
) -> Float[Array, " M"]:
    """Sampling weights sqrt(v (1 - v)) + exploration_epsilon of the prompts of the data set.

    Args:
      values: tracked success rate of each prompt, in [0, 1].
      exploration_epsilon: weight that a prompt of certain outcome keeps.

    References:
      SPO, arXiv:2509.13232. Departs: none.

    Example:
      >>> [round(float(w), 2) for w in uncertainty_weights(jnp.array([0.5, 0.9, 0.0]))]
      [0.55, 0.35, 0.05]
    """
    v = jnp.asarray(values).astype(jnp.float32)
    return jnp.sqrt(jnp.maximum(v * (1.0 - v), 0.0)) + exploration_epsilon


def opposite_pair(
    pass_rates: Float[AnyArray, " M"], group_size: int, width: float = 2.0
) -> tuple[int | None, int | None]:
    """A hard prompt that is sometimes solved, and an easy one that is sometimes missed.

    Args:
      pass_rates: success rate of each prompt over `group_size` probes.
      group_size: G, so that 1 / G is one success.
      width: c; the bands are 0 < p <= c / G and 1 - c / G <= p <= 1 - 1 / G.

    Returns:
      Index of the lowest rate of the first band, and of the highest of the second; None for an
      empty band (widen `width`).

    References:
      arXiv:2602.03452. Departs: the first band and the picks are assumed.

    Example:
      >>> opposite_pair(jnp.array([0, 0.125, 0.5, 0.75, 0.875, 1.0]), group_size=8)
      (1, 4)
    """
    p = jnp.asarray(pass_rates).astype(jnp.float32)
    edge, slack = width / group_size, 1e-6
    hard = (p > 0) & (p <= edge + slack)
    easy = (p >= 1.0 - edge - slack) & (p <= 1.0 - 1.0 / group_size + slack)
    lowest = int(jnp.argmin(jnp.where(hard, p, jnp.inf))) if hard.any() else None
    highest = int(jnp.argmax(jnp.where(easy, p, -jnp.inf))) if easy.any() else None
    return lowest, highest


def predicted_trivial(
    predicted_rates: Float[AnyArray, "P M"], spread_max: float
) -> Bool[Array, " P"]:
    """Prompts whose M predicted pass rates agree on exactly 0 or exactly 1: not worth sampling.

    Args:
      predicted_rates: the model's own predictions for each prompt.
      spread_max: population deviation of the predictions above which they do not agree.

    References:
      MASA, arXiv:2510.03259. Departs: the threshold is not published, its deviation assumed.
    """
    p = jnp.asarray(predicted_rates).astype(jnp.float32)
    mean = jnp.mean(p, axis=1)
    return (jnp.std(p, axis=1) < spread_max) & ((mean == 0.0) | (mean == 1.0))


SAMPLERS: Mapping[str, Choice[Keep]] = {
    "uniform": Choice(function=keep_all, formula="every group is trained"),
    "dynamic": Choice(
        function=keep_mixed,
        formula="groups of equal outcomes are dropped and replaced, for at most"
        " dynamic_max_rounds rounds",
        constants=("dynamic_max_rounds",),
        watch=("sampling/rounds", "sampling/kept_fraction"),
        pitfalls=(
            "Kept groups are of middling difficulty: their mean reward is not training accuracy.",
        ),
    ),
    "unsolved": Choice(
        function=keep_unsolved,
        formula="groups whose outcomes are all max_reward are dropped and replaced, for at most"
        " dynamic_max_rounds rounds",
        constants=("max_reward", "dynamic_max_rounds"),
        watch=("sampling/rounds", "sampling/kept_fraction"),
        pitfalls=("With a baseline of sampled rows all-wrong groups are kept and teach nothing.",),
    ),
}
