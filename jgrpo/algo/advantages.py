"""BASE, SCALE and POST: from the rewards of a group to the advantage of each completion.

Letters: P prompts, G completions per prompt. Every choice of a slot has the signature stated here.
`side.valid` is always set when they are called, and rows where it is False hold reward 0; they must
not enter any statistic. `state` is the method's own pytree (trackers, multipliers), None so far.

Group statistics are taken of differences to the group's lowest reward, so that a constant group
has exactly zero deviations and large common offsets cost no precision.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jgrpo.algo.choice import Choice
from jgrpo.algo.methods import Method
from jgrpo.algo.shaping import SHAPES, kl_in_reward
from jgrpo.algo.side import Side, required
from jgrpo.types import AnyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantages:
    """What the learner trains with.

    Attributes:
      values: advantage of each completion; 0 where `keep` is False.
      keep: False for rows that must not be trained: take them out of the mask.
      state: the method's state after this batch.
    """

    values: Float[Array, "P G"]
    keep: Bool[Array, "P G"]
    state: PyTree = None


# (m, rewards, side, state) -> rewards less their baseline
Base: TypeAlias = Callable[[Method, Float[Array, "P G"], Side, PyTree], Float[Array, "P G"]]
# (m, centred, rewards, side, state) -> advantages
Scale: TypeAlias = Callable[
    [Method, Float[Array, "P G"], Float[Array, "P G"], Side, PyTree], Float[Array, "P G"]
]
# (m, values, side, state) -> what the learner trains with
Post: TypeAlias = Callable[[Method, Float[Array, "P G"], Side, PyTree], Advantages]


def advantages(
    m: Method,
    rewards: Float[AnyArray, "P G"],
    side: Side | None = None,
    state: PyTree = None,
) -> Advantages:
    """Turns the rewards of the global batch into advantages: SHAPE, BASE, SCALE, POST.

    Args:
      m: the method.
      rewards: one per completion; may be nan where `side.valid` is False.
      side: further facts about the completions, as `needs(m)` demands.
      state: the method's state; stateless methods hand it through.

    Returns:
      Advantages in float32. A constant group, or one of fewer than two valid rows, gets exactly 0
      unless base is `none` and scale is `none`.

    Raises:
      ValueError: if the method needs side information that is missing.
    """
    side = Side() if side is None else side
    valid = jnp.ones(rewards.shape, bool) if side.valid is None else jnp.asarray(side.valid)
    side = dataclasses.replace(side, valid=valid)
    shaped = jnp.where(valid, jnp.asarray(rewards).astype(jnp.float32), 0.0)
    shaped = SHAPES[m.shape].function(m, shaped, side)
    if m.kl_in == "reward" and m.penalty != "none" and m.kl_coef > 0:
        shaped = kl_in_reward(m, shaped, side)
    shaped = jnp.where(valid, shaped, 0.0)
    centred = BASES[m.base].function(m, shaped, side, state)
    scaled = SCALES[m.scale].function(m, centred, shaped, side, state)
    return POSTS[m.post].function(m, jnp.where(valid, scaled, 0.0), side, state)


def no_baseline(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Leaves rewards as they are."""
    return rewards


def group_mean(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts the mean of the group's valid rewards.

    Returns:
      Centred rewards, in reward units. Valid ones sum to zero in each group.

    References:
      GRPO, arXiv:2402.03300. Departs: none.
    """
    return _deviations(rewards, required(side.valid, "valid", m))


def leave_one_out(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """Subtracts from each reward the mean of the other valid rewards of its group.

    A_i = r_i - mean(r_j for j != i) = n / (n - 1) * (r_i - mean(r)), n valid rows.

    Returns:
      Advantages in reward units. Valid ones sum to zero in each group; a group of one gets 0.

    References:
      RLOO, arXiv:2402.14740. Departs: a group of one gets 0, where verl keeps the raw reward.
    """
    valid = required(side.valid, "valid", m)
    count = _count(valid)
    return _deviations(rewards, valid) * (count / jnp.maximum(count - 1.0, 1.0))


def unscaled(
    m: Method,
    centred: Float[Array, "P G"],
    rewards: Float[Array, "P G"],
    side: Side,
    state: PyTree,
) -> Float[Array, "P G"]:
    """Leaves centred rewards as they are."""
    return centred


def group_std(
    m: Method,
    centred: Float[Array, "P G"],
    rewards: Float[Array, "P G"],
    side: Side,
    state: PyTree,
) -> Float[Array, "P G"]:
    """Divides by the standard deviation of the group's valid rewards plus `scale_eps`.

    Args:
      m: reads `scale_ddof` and `scale_eps` (added outside the root).
      centred: rewards less their baseline.
      rewards: the shaped rewards, of which the deviation is taken.
      side: `valid`.
      state: unused.

    Returns:
      Advantages without unit; exactly 0 in a group whose deviation is 0.

    References:
      GRPO, arXiv:2402.03300. Departs: the paper leaves ddof and eps open.
    """
    valid = required(side.valid, "valid", m)
    count = _count(valid)
    squares = jnp.square(_deviations(rewards, valid))
    variance = jnp.sum(squares, axis=1, keepdims=True) / jnp.maximum(count - m.scale_ddof, 1.0)
    std = jnp.sqrt(variance)
    varied = std > 0
    return jnp.where(varied, centred / jnp.where(varied, std + m.scale_eps, 1.0), 0.0)


def as_they_are(m: Method, values: Float[Array, "P G"], side: Side, state: PyTree) -> Advantages:
    """Trains every valid row with its advantage."""
    keep = jnp.asarray(required(side.valid, "valid", m))
    return Advantages(values=values, keep=keep, state=state)


def _count(valid: Bool[AnyArray, "P G"]) -> Float[Array, "P 1"]:
    return jnp.sum(valid, axis=1, keepdims=True).astype(jnp.float32)


def _deviations(rewards: Float[Array, "P G"], valid: Bool[AnyArray, "P G"]) -> Float[Array, "P G"]:
    """Rewards less the mean of the valid ones; exactly 0 for a constant group and invalid rows."""
    lowest = jnp.min(jnp.where(valid, rewards, jnp.inf), axis=1, keepdims=True)
    above = jnp.where(valid, rewards - lowest, 0.0)
    mean = jnp.sum(above, axis=1, keepdims=True) / jnp.maximum(_count(valid), 1.0)
    return jnp.where(valid, above - mean, 0.0)


BASES: Mapping[str, Choice[Base]] = {
    "none": Choice(function=no_baseline, formula="A0 = R'"),
    "group_mean": Choice(
        function=group_mean,
        formula="A0_i = R'_i - mean_j R'_j",
        watch=("reward/zero_variance_fraction", "advantage/abs_mean"),
        pitfalls=("A group of equal rewards teaches nothing.",),
    ),
    "leave_one_out": Choice(
        function=leave_one_out,
        formula="A0_i = R'_i - mean_{j != i} R'_j = G / (G - 1) * (R'_i - mean_j R'_j)",
        watch=("reward/zero_variance_fraction", "advantage/abs_mean"),
        pitfalls=("A group of equal rewards teaches nothing.",),
    ),
}
SCALES: Mapping[str, Choice[Scale]] = {
    "none": Choice(
        function=unscaled,
        formula="A = A0",
        watch=("advantage/abs_mean",),
        pitfalls=("Advantages carry the scale of the rewards: tune the learning rate to it.",),
    ),
    "group_std": Choice(
        function=group_std,
        formula="A_i = A0_i / (std_j R'_j + scale_eps), std divides by G - scale_ddof",
        constants=("scale_eps", "scale_ddof"),
        watch=("reward/group_std",),
        pitfalls=(
            "Nearly constant groups are blown up: tiny differences (a length term) count in full.",
        ),
    ),
}
POSTS: Mapping[str, Choice[Post]] = {
    "none": Choice(function=as_they_are, formula="A kept as it is"),
}
