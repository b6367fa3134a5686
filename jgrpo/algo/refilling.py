"""REFILL: what is trained in the place of groups that teach nothing. ROW_MASK: rows not trained on.

Letters: P prompts, G completions per prompt. Both leave the group statistics as they are. The
choices of REFILL have the signature `Refill`, those of ROW_MASK `RowMask`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.drawing import success_rate
from jgrpo.algo.row import Method
from jgrpo.algo.sampling import keep_mixed
from jgrpo.algo.side import Side, required
from jgrpo.types import AnyArray


class Filled(NamedTuple):
    """The groups that a step trains on.

    Attributes:
      group: number of the group at each place.
      weight: factor of its advantages.
    """

    group: Int[Array, " P"]
    weight: Float[Array, " P"]


# (m, rewards as scored, rows that count, key) -> the groups to train on
Refill: TypeAlias = Callable[
    [Method, Float[Array, "P G"], Bool[Array, "P G"], Key[Array, ""]], Filled
]
# (m, side) -> False for rows that count in the statistics but are not trained
RowMask: TypeAlias = Callable[[Method, Side], Bool[Array, "P G"]]


def refill(
    m: Method,
    rewards: Float[AnyArray, "P G"],
    valid: Bool[AnyArray, "P G"],
    key: Key[Array, ""],
) -> Filled:
    """The groups that a step trains on, some of them perhaps several times.

    Args:
      m: the method.
      rewards: as scored.
      valid: rows that count.
      key: names what is drawn.
    """
    rewards = jnp.asarray(rewards).astype(jnp.float32)
    return chosen(REFILLS, m.refill).function(m, rewards, jnp.asarray(valid), key)


def as_sampled(
    m: Method, rewards: Float[Array, "P G"], valid: Bool[Array, "P G"], key: Key[Array, ""]
) -> Filled:
    """Every group once."""
    places = jnp.arange(rewards.shape[0])
    return Filled(places, jnp.ones(places.shape, jnp.float32))


def task_value(m: Method, rates: Float[AnyArray, " P"]) -> Float[Array, " P"]:
    """What a prompt is worth: difficulty of what is solvable, mixed with uncertainty.

    v = w (1 - p) [p > 0] + (1 - w) 4 p (1 - p), w = `value_blend`.

    Args:
      m: the method.
      rates: success rate of each prompt.

    References:
      VSPO, arXiv:2512.07478. Departs: the formula is assumed.

    Example:
      >>> from jgrpo.algo import METHODS
      >>> rates = jnp.array([0, 0.125, 0.5, 0.875, 1])
      >>> [round(float(v), 3) for v in task_value(METHODS["vspo"], rates)]
      [0.0, 0.656, 0.75, 0.281, 0.0]
    """
    p = jnp.asarray(rates).astype(jnp.float32)
    difficulty = jnp.where(p > 0, 1.0 - p, 0.0)
    return m.value_blend * difficulty + (1.0 - m.value_blend) * 4.0 * p * (1.0 - p)


def by_task_value(
    m: Method, rewards: Float[Array, "P G"], valid: Bool[Array, "P G"], key: Key[Array, ""]
) -> Filled:
    """Puts groups drawn by their value in the place of those whose rewards are all equal.

    All copies of a group weigh min(1, copies_max / copies), the first among them. If no group has
    rewards that differ, nothing changes.

    References:
      VSPO, arXiv:2512.07478. Departs: the weight stands in for its smoothing, whose formula was
      not found; success rates are those of this step.
    """
    kept = keep_mixed(m, rewards, valid)
    count = jnp.maximum(valid.sum(axis=1), 1)
    mean = jnp.where(valid, rewards, 0.0).sum(axis=1) / count
    value = jnp.maximum(task_value(m, success_rate(m, mean)), 1e-9)
    drawn = jax.random.categorical(key, jnp.where(kept, jnp.log(value), -jnp.inf), shape=mean.shape)
    places = jnp.arange(rewards.shape[0])
    group = jnp.where(kept | ~kept.any(), places, drawn)
    copies = jnp.zeros_like(places).at[group].add(1)[group]
    return Filled(group, jnp.minimum(1.0, m.copies_max / copies.astype(jnp.float32)))


def row_mask(m: Method, side: Side) -> Bool[Array, "P G"] | None:
    """False for rows that count in the statistics but are not trained; None: all are trained."""
    if m.row_mask == "none":
        return None
    return chosen(ROW_MASKS, m.row_mask).function(m, side)


def every_row(m: Method, side: Side) -> Bool[Array, "P G"]:
    """Trains every row."""
    return jnp.ones_like(jnp.asarray(required(side.valid, "valid", m)))


def some_truncated(m: Method, side: Side) -> Bool[Array, "P G"]:
    """Spares some of the rows that the length limit cut off before anything was wrong with them.

    A row is not trained if it was cut off, was not judged wrong, does not repeat itself, and a
    uniform draw is below `spare_chance`.

    References:
      MicroCoder-GRPO, arXiv:2603.07777, its released equation. Departs: what "non-incorrect" is,
      is the caller's to say.
    """
    cut = jnp.asarray(required(side.truncated, "truncated", m))
    sound = jnp.asarray(required(side.non_incorrect, "non_incorrect", m))
    repeats = jnp.asarray(required(side.repeats, "repeats", m))
    chance = jnp.asarray(required(side.chance, "chance", m))
    return ~(cut & sound & ~repeats & (chance < m.spare_chance))


def is_repeat(
    tokens: Int[AnyArray, "P G T"], mask: Bool[AnyArray, "P G T"], span: int
) -> Bool[Array, "P G"]:
    """True where the last `span` tokens of a completion are those before them once more.

    Args:
      tokens: token ids, padded on the right.
      mask: True at the completion's tokens.
      span: number of tokens.

    Example:
      >>> tokens = jnp.array([[[5, 1, 2, 1, 2], [1, 2, 1, 3, 0]]])
      >>> is_repeat(tokens, jnp.ones((1, 2, 5), bool), 2).tolist()
      [[True, False]]
    """
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    length = mask.sum(axis=-1)
    back = jnp.arange(1, span + 1)[None, None]
    at = lambda shift: jnp.take_along_axis(  # noqa: E731
        tokens, jnp.maximum(length[..., None] - back - shift, 0), axis=-1
    )
    return (at(0) == at(span)).all(axis=-1) & (length >= 2 * span)


REFILLS: Mapping[str, Choice[Refill]] = {
    "none": Choice(function=as_sampled, formula="every group is trained once"),
    "task_value": Choice(
        function=by_task_value,
        formula="groups of equal rewards are replaced by copies of others, drawn by"
        " v = value_blend (1 - p) [p > 0] + (1 - value_blend) 4 p (1 - p); a copy weighs"
        " min(1, copies_max / copies)",
        constants=("value_blend", "copies_max", "min_value", "max_value"),
        needs=("refill",),
        watch=("refill/replaced_fraction", "refill/copies_max"),
        pitfalls=("Few groups with a gradient are trained many times: watch refill/copies_max.",),
    ),
}
ROW_MASKS: Mapping[str, Choice[RowMask]] = {
    "none": Choice(function=every_row, formula="every row is trained"),
    "truncated": Choice(
        function=some_truncated,
        formula="a row cut off at L_max, not judged wrong and without a repeated end of"
        " repeat_tokens is left out with chance spare_chance, but stays in the statistics",
        constants=("repeat_tokens", "spare_chance"),
        needs=("truncated", "non_incorrect", "repeats", "chance"),
        watch=("completion/spared_fraction", "completion/clipped_fraction"),
    ),
}
