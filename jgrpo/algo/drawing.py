"""DRAW: which of the candidates a step asks, by what is known of them.

Letters: C candidates, P prompts of a step. Every choice has the signature `Draw` and returns places
among the candidates, all different. What is known is a tracker's state (`trackers.py`), so a draw
is a function of state and key; reading and tokenising the prompts is the loop's work.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.row import Method
from jgrpo.algo.sampling import uncertainty_weights
from jgrpo.algo.trackers import tracked_values
from jgrpo.types import AnyArray

# (m, expected reward of each candidate in [0, 1], whether it was asked before, key, P) -> places
Draw: TypeAlias = Callable[
    [Method, Float[Array, " C"], Bool[Array, " C"], Key[Array, ""], int], Int[Array, " P"]
]


def draw(
    m: Method, state: PyTree, prompt_ids: Int[AnyArray, " C"], key: Key[Array, ""], count: int
) -> Int[Array, " P"]:
    """Places of the prompts that a step asks among its candidates.

    Args:
      m: the method.
      state: of its tracker.
      prompt_ids: numbers of the candidates in the data set, all different.
      key: names the draw.
      count: prompts wanted.

    Returns:
      Different places, as many as wanted.

    Raises:
      ValueError: if there are fewer candidates than that.
    """
    if len(prompt_ids) < count:
        raise ValueError(
            f"method {m.name!r}: {count} prompts are to be drawn from {len(prompt_ids)} candidates"
        )
    values, seen = known(m, state, prompt_ids)
    return chosen(DRAWS, m.draw).function(m, values, seen, key, count)


def known(
    m: Method, state: PyTree, prompt_ids: Int[AnyArray, " C"]
) -> tuple[Float[Array, " C"], Bool[Array, " C"]]:
    """Success rate of each prompt in [0, 1] as the tracker expects it, and which were asked.

    Args:
      m: the method; `min_value` and `max_value` are its worst and best reward.
      state: of its tracker.
      prompt_ids: the prompts.
    """
    values, seen = tracked_values(m, state, prompt_ids)
    return success_rate(m, values), seen


def success_rate(m: Method, rewards: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rewards from min_value to max_value as rates in [0, 1]."""
    return jnp.clip((rewards - m.min_value) / (m.max_value - m.min_value), 0.0, 1.0)


def in_order(
    m: Method,
    values: Float[Array, " C"],
    seen: Bool[Array, " C"],
    key: Key[Array, ""],
    count: int,
) -> Int[Array, " P"]:
    """The first candidates."""
    return jnp.arange(count)


def by_uncertainty(
    m: Method,
    values: Float[Array, " C"],
    seen: Bool[Array, " C"],
    key: Key[Array, ""],
    count: int,
) -> Int[Array, " P"]:
    """Draws without replacement, by the weights sqrt(p (1 - p)) + priority_floor.

    The largest of log weight + Gumbel noise are such a draw.

    References:
      SPO, arXiv:2509.13232. Departs: a prompt not asked yet counts as one of rate 1/2.
    """
    weights = uncertainty_weights(jnp.where(seen, values, 0.5), m.priority_floor)
    noise = jax.random.gumbel(key, weights.shape)
    scores = jnp.where(weights > 0, jnp.log(jnp.maximum(weights, 1e-30)), -1e30) + noise
    return jax.lax.top_k(scores, count)[1]


def rarity(
    m: Method, values: Float[AnyArray, " C"], seen: Bool[AnyArray, " C"]
) -> Int[Array, " C"]:
    """1 for prompts that are seldom solved, -1 for those that are seldom missed, 0 for others.

    Rates from `rare_low` to `rare_high`, and from 1 - rare_high to 1 - rare_low.

    Args:
      m: the method.
      values: success rates.
      seen: False where the rate says nothing.

    References:
      arXiv:2602.03452. Departs: the bands are assumed.

    Example:
      >>> from jgrpo.algo import METHODS
      >>> rates = jnp.array([0.0, 0.0625, 0.25, 0.5, 0.75, 0.9375, 1.0])
      >>> rarity(METHODS["pairing"], rates, jnp.ones(7, bool)).tolist()
      [0, 1, 1, 0, -1, -1, 0]
    """
    p, slack = jnp.asarray(values).astype(jnp.float32), 1e-6

    def within(rate: Float[Array, " C"]) -> Bool[Array, " C"]:
        return (rate >= m.rare_low - slack) & (rate <= m.rare_high + slack)

    hard = jnp.asarray(seen) & within(p)
    easy = jnp.asarray(seen) & within(1.0 - p) & ~hard
    return hard.astype(jnp.int32) - easy.astype(jnp.int32)


def in_pairs(
    m: Method,
    values: Float[Array, " C"],
    seen: Bool[Array, " C"],
    key: Key[Array, ""],
    count: int,
) -> Int[Array, " P"]:
    """Draws pairs of a prompt seldom solved and one seldom missed, as many as there are.

    Pairs come first, a prompt behind its partner; then prompts not asked yet, then others.

    References:
      arXiv:2602.03452. Departs: which prompts of a band make a pair (equal chances), and what is
      asked where there are too few, is assumed.
    """
    kind, noise = rarity(m, values, seen), jax.random.uniform(key, values.shape)
    half = count // 2
    first = {sign: _lowest(jnp.where(kind == sign, noise, 2.0), half) for sign in (1, -1)}
    pairs = jnp.minimum((kind == 1).sum(), (kind == -1).sum())
    place = jnp.where(seen, 2.0 + noise, 1.0 + noise)
    rank = jnp.arange(half)
    for sign, of_kind in first.items():  # the pair of rank r: at 2 r - count, before all others
        paired = 2.0 * rank + (sign < 0) - count
        place = place.at[of_kind].set(jnp.where(rank < pairs, paired, place[of_kind]))
    return _lowest(place, count)


def _lowest(values: Float[Array, " C"], count: int) -> Int[Array, " P"]:
    """Places of the lowest values, in order; to sort a million takes 200 times as long."""
    return jax.lax.top_k(-values, count)[1]


DRAWS: Mapping[str, Choice[Draw]] = {
    "order": Choice(function=in_order, formula="the next prompts of the run's order"),
    "priority": Choice(
        function=by_uncertainty,
        formula="of draw_candidates P prompts (0: of all) P without replacement, by"
        " w = sqrt(p (1 - p)) + priority_floor, p = what the tracker expects",
        constants=("draw_candidates", "priority_floor", "min_value", "max_value"),
        needs=("draw", "state"),
        watch=("draw/success_mean", "draw/asked_before_fraction"),
        pitfalls=("It needs prompts that come again: endless generated data has none.",),
    ),
    "pairs": Choice(
        function=in_pairs,
        formula="of draw_candidates P prompts (0: of all) pairs of one with p in [rare_low,"
        " rare_high] and one with 1 - p in it; for want of pairs, prompts not asked yet",
        constants=("draw_candidates", "rare_low", "rare_high", "min_value", "max_value"),
        needs=("draw", "state"),
        watch=("draw/paired_fraction", "draw/asked_before_fraction"),
        pitfalls=(
            "It needs prompts that come again: endless generated data has none.",
            "The mean reward of a step is that of its pairs, near 1/2 by construction.",
        ),
    ),
}
