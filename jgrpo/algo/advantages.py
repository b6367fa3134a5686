"""From the rewards of a group to the advantage of each completion, or of each token.

Letters: P prompts, G completions per prompt, K reward columns, B = P*G, T token positions. One
function runs the slots SHAPE, BASE, SCALE, COMBINE, POST, ROW_MASK and TRACKER in this order; each
of them is a file of pure functions (`shaping`, `baselines`, `scales`, `combining`, `posts`,
`refilling`, `trackers`).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jgrpo.algo.baselines import BASES
from jgrpo.algo.choice import chosen
from jgrpo.algo.combining import COMBINES
from jgrpo.algo.penalties import penalised
from jgrpo.algo.posts import POSTS
from jgrpo.algo.record import Advantages
from jgrpo.algo.refilling import row_mask
from jgrpo.algo.row import Method
from jgrpo.algo.scales import SCALES
from jgrpo.algo.shaping import SHAPES, kl_in_reward
from jgrpo.algo.side import Side, required
from jgrpo.algo.trackers import TRACKERS
from jgrpo.types import AnyArray

# Shapes that take one reward; the others take columns, or either.
_SINGLE = ("overlong", "unlikeliness", "squash", "outcome_weight", "lambda_switch", "serial")
_SINGLE += ("care", "weak_mean", "weak_sum")
_LEAVE_ONE = ("weighted_sum", "rubric", "rubric_raw", "surrogate", "gated_sum")
_LEAVE_ONE += ("budget_triangle", "budget_band", "progressive")
_COLUMNS = (*_LEAVE_ONE, "suffix_dcg")
# What looks at the shaped rewards once more after the columns have been combined.
_POSTS_OF_ONE = ("blend_group", "drop_pivot", "drop_pivot_rescaled", "prefix_td")


def advantages(
    m: Method,
    rewards: Float[AnyArray, "P G"] | Float[AnyArray, "P G K"],
    side: Side | None = None,
    state: PyTree = None,
) -> Advantages:
    """Turns the rewards of the global batch into advantages.

    Args:
      m: the method.
      rewards: one per completion, or K columns of them; may be nan where `side.valid` is False.
      side: further facts about the completions, as `needs(m)` demands.
      state: the method's state, from `init_state`; stateless methods hand it through.

    Returns:
      Advantages in float32. A constant group, or one of fewer than two valid rows, gets exactly 0
      from bases and scales that compare the rows of a group.

    Raises:
      ValueError: if the method needs side information or state that is missing, or is for another
        number of reward columns.
    """
    side = Side() if side is None else side
    rewards = jnp.asarray(rewards).astype(jnp.float32)
    shape = rewards.shape[:2]
    valid = jnp.ones(shape, bool) if side.valid is None else jnp.asarray(side.valid)
    side = dataclasses.replace(side, valid=valid)
    _check_columns(m, rewards)
    counts = valid[..., None] if rewards.ndim == 3 else valid
    rewards = jnp.where(counts, rewards, 0.0)
    shaped = chosen(SHAPES, m.shape).function(m, rewards, side)
    if penalised(m, "reward"):
        shaped = kl_in_reward(m, shaped, side)
    shaped = jnp.where(valid[..., None] if shaped.ndim == 3 else valid, shaped, 0.0)
    if shaped.ndim == 2:
        scaled = _normalised(m, shaped, side, state)
    else:
        columns = [_normalised(m, shaped[..., k], side, state) for k in range(shaped.shape[2])]
        combine = chosen(COMBINES, m.combine).function
        scaled = combine(m, jnp.stack(columns, axis=2), side, state)
    result = chosen(POSTS, m.post).function(m, scaled, shaped, side, state)
    result = _spared(result, row_mask(m, side))
    if m.tracker == "none":
        return result
    return dataclasses.replace(
        result, state=chosen(TRACKERS, m.tracker).function(m, state, rewards, side)
    )


def _spared(result: Advantages, trained: Bool[Array, "P G"] | None) -> Advantages:
    """Takes rows out of training that the statistics have counted."""
    if trained is None:
        return result
    keep, values = result.keep & trained, result.values
    at = keep if values.shape == keep.shape else keep.reshape(-1, 1)
    return dataclasses.replace(result, keep=keep, values=jnp.where(at, values, 0.0))


def _normalised(
    m: Method, rewards: Float[Array, "P G"], side: Side, state: PyTree
) -> Float[Array, "P G"]:
    """BASE and SCALE of one column; 0 where a row does not count."""
    centred = chosen(BASES, m.base).function(m, rewards, side, state)
    scaled = chosen(SCALES, m.scale).function(m, centred, rewards, side, state)
    return jnp.where(required(side.valid, "valid", m), scaled, 0.0)


def _check_columns(m: Method, rewards: Float[Array, "..."]) -> None:
    """Refuses columns where one reward is meant, and one reward where columns are."""
    if rewards.ndim == 3:
        if m.shape in _SINGLE:
            raise ValueError(
                f"method {m.name!r}: shape {m.shape!r} takes one reward per completion [P, G], got "
                f"{rewards.shape[2]} columns: add them up first"
            )
        if penalised(m, "reward") and m.shape not in ("column_mean", *_LEAVE_ONE):
            raise ValueError(
                f"method {m.name!r}: kl_in 'reward' is for one reward, got {rewards.shape[2]} "
                "columns: set shape='weighted_sum', or kl_in='loss'"
            )
        if m.post in _POSTS_OF_ONE and m.shape not in ("column_mean", *_LEAVE_ONE):
            raise ValueError(
                f"method {m.name!r}: post {m.post!r} is for one reward, got {rewards.shape[2]} "
                "columns: set shape='weighted_sum', or another post"
            )
    elif m.shape in _COLUMNS or m.combine in ("multipliers", "keep"):
        slot = f"shape {m.shape!r}" if m.shape in _COLUMNS else f"combine {m.combine!r}"
        raise ValueError(
            f"method {m.name!r}: {slot} takes reward columns [P, G, K], got [P, G]; a single "
            "column is rewards[..., None]"
        )
