"""SAMPLER, the part that is arithmetic: which sampled groups are worth training.

Letters: P prompts, G completions per prompt. Every choice has the signature `Keep`. Drawing prompts
and refilling the batch is the loop's work.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jgrpo.algo.choice import Choice
from jgrpo.algo.methods import Method
from jgrpo.algo.side import Side
from jgrpo.types import AnyArray

# (outcomes, valid) -> groups to train
Keep: TypeAlias = Callable[[Float[Array, "P G"], Bool[Array, "P G"]], Bool[Array, " P"]]


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
    return SAMPLERS[m.sampler].function(outcomes, valid)


def keep_all(outcomes: Float[Array, "P G"], valid: Bool[Array, "P G"]) -> Bool[Array, " P"]:
    """Keeps every group."""
    return jnp.ones(outcomes.shape[0], bool)


def keep_mixed(outcomes: Float[Array, "P G"], valid: Bool[Array, "P G"]) -> Bool[Array, " P"]:
    """Keeps groups whose valid outcomes are not all equal."""
    highest = jnp.max(jnp.where(valid, outcomes, -jnp.inf), axis=1)
    lowest = jnp.min(jnp.where(valid, outcomes, jnp.inf), axis=1)
    return highest > lowest


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
}
