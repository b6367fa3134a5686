"""TRACKER: what a method remembers from step to step, as a pytree, and how a batch changes it.

Letters: P prompts of a batch, G completions per prompt, K reward columns, M prompts of the data
set. Every choice has the signature `Tracker`. The state is `TrainState.strategy`: made once by
`init_state`, handed to `advantages`, taken from `Advantages.state`, and checkpointed by the caller.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side, required
from jgrpo.types import AnyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaTracker:
    """Pseudo-counts of success and failure of every prompt.

    Attributes:
      alpha: of successes.
      beta: of failures.
    """

    alpha: Float[AnyArray, " M"]
    beta: Float[AnyArray, " M"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SuccessRates:
    """Mean reward of every prompt when it was last asked.

    Attributes:
      rate: in reward units.
      seen: False for prompts not asked yet, whose rate says nothing.
    """

    rate: Float[AnyArray, " M"]
    seen: Bool[AnyArray, " M"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Weights of the constrained reward columns.

    Attributes:
      values: one for each column after the first.
    """

    values: Float[AnyArray, " C"]


# (m, state, rewards as scored, side) -> state after the batch
Tracker: TypeAlias = Callable[
    [Method, PyTree, Float[Array, "P G"] | Float[Array, "P G K"], Side], PyTree
]


def init_state(
    m: Method,
    *,
    num_prompts: int = 0,
    outcomes: Float[AnyArray, "M N"] | None = None,
) -> PyTree:
    """The state of a method before its first step.

    Args:
      m: the method.
      num_prompts: M; needed by the trackers of prompts.
      outcomes: N rewards in [0, 1] for each prompt from before the run; start the beta tracker.

    Returns:
      The pytree to hand to `advantages`; None for a method without a tracker.

    Raises:
      ValueError: if `num_prompts` is missing, or the thresholds of the multipliers are.

    Example:
      >>> from jgrpo.algo import METHODS
      >>> init_state(METHODS["spo"], num_prompts=2).alpha.tolist()
      [0.5, 0.5]
    """
    if m.tracker == "multipliers":
        if not m.dual_thresholds:
            raise ValueError(
                f"method {m.name!r} needs dual_thresholds: one number per constrained column"
            )
        return Multipliers(values=jnp.full(len(m.dual_thresholds), m.dual_init, jnp.float32))
    if m.tracker not in ("beta", "success"):
        return None
    if outcomes is None and num_prompts < 1:
        raise ValueError(
            f"method {m.name!r} keeps a state for every prompt: pass num_prompts, the size of the "
            f"data set, got {num_prompts}"
        )
    if m.tracker == "success":
        shape = (num_prompts if outcomes is None else outcomes.shape[0],)
        return SuccessRates(rate=jnp.zeros(shape, jnp.float32), seen=jnp.zeros(shape, bool))
    if outcomes is None:
        half = jnp.full(num_prompts, 0.5, jnp.float32)
        return BetaTracker(alpha=half, beta=half)
    size = 1.0 / (1.0 - min(m.rho_min, 1.0 - 1e-6))
    right = jnp.sum(jnp.asarray(outcomes).astype(jnp.float32), axis=1)
    number = outcomes.shape[1]
    return BetaTracker(
        alpha=size * (right + 0.5) / (number + 1),
        beta=size * (number - right + 0.5) / (number + 1),
    )


def tracked_values(
    m: Method, state: PyTree, prompt_ids: Int[AnyArray, " P"]
) -> tuple[Float[Array, " P"], Bool[Array, " P"]]:
    """The mean reward that the tracker expects of some prompts, and which it has met.

    Args:
      m: the method; its tracker is `success` or `beta`.
      state: the tracker's state.
      prompt_ids: the prompts.
    """
    ids = jnp.asarray(prompt_ids)
    if isinstance(state, BetaTracker):
        alpha, beta = jnp.asarray(state.alpha)[ids], jnp.asarray(state.beta)[ids]
        return alpha / (alpha + beta), jnp.ones(ids.shape, bool)
    state = of_kind(m, state, SuccessRates)
    return jnp.asarray(state.rate)[ids], jnp.asarray(state.seen)[ids]


def unchanged(
    m: Method, state: PyTree, rewards: Float[Array, "P G"] | Float[Array, "P G K"], side: Side
) -> PyTree:
    """Hands the state through."""
    return state


def beta_update(m: Method, state: PyTree, rewards: Float[Array, "P G"], side: Side) -> BetaTracker:
    """Forgets a part of the counts, more after a greater drift, and adds the new outcome.

    rho = clip(2^(-drift / half_drift), rho_min, rho_max); alpha <- rho alpha + r,
    beta <- rho beta + 1 - r.

    References:
      SPO, arXiv:2509.13232. Departs: a group of several completions adds its mean once.
    """
    state = of_kind(m, state, BetaTracker)
    ids = jnp.asarray(required(side.prompt_ids, "prompt_ids", m))
    drift = jnp.asarray(required(side.drift, "drift", m)).astype(jnp.float32)
    mean, filled = _means(m, rewards, side)
    rho = jnp.clip(jnp.exp2(-drift / m.half_drift), m.rho_min, m.rho_max)
    alpha, beta = state.alpha[ids], state.beta[ids]
    return BetaTracker(
        alpha=jnp.asarray(state.alpha).at[ids].set(jnp.where(filled, rho * alpha + mean, alpha)),
        beta=jnp.asarray(state.beta).at[ids].set(jnp.where(filled, rho * beta + 1 - mean, beta)),
    )


def success_update(
    m: Method, state: PyTree, rewards: Float[Array, "P G"], side: Side
) -> SuccessRates:
    """Remembers the mean reward of each prompt asked.

    References:
      Knapsack RL, arXiv:2509.25849 (the estimate of the previous epoch). Departs: none.
    """
    state = of_kind(m, state, SuccessRates)
    ids = jnp.asarray(required(side.prompt_ids, "prompt_ids", m))
    mean, filled = _means(m, rewards, side)
    return SuccessRates(
        rate=jnp.asarray(state.rate).at[ids].set(jnp.where(filled, mean, state.rate[ids])),
        seen=jnp.asarray(state.seen).at[ids].set(filled | state.seen[ids]),
    )


def multipliers_update(
    m: Method, state: PyTree, rewards: Float[Array, "P G K"], side: Side
) -> Multipliers:
    """Raises the multiplier of a column that stays below its threshold, lowers the others.

    lambda <- clip(lambda + dual_lr (threshold - mean), 0, dual_max), the mean taken over the
    applicable completions of the batch.

    References:
      Faithful GRPO, arXiv:2604.08476. Departs: none.
    """
    state = of_kind(m, state, Multipliers)
    constrained = rewards[..., 1:]
    counted = applicable(m, constrained, side)
    number = jnp.sum(counted, axis=(0, 1)).astype(jnp.float32)
    total = jnp.sum(jnp.where(counted, constrained, 0.0), axis=(0, 1))
    gap = jnp.asarray(m.dual_thresholds, jnp.float32) - total / jnp.maximum(number, 1.0)
    moved = jnp.clip(state.values + m.dual_lr * gap, 0.0, m.dual_max)
    enough = number >= max(m.dual_min_samples, 1)
    return Multipliers(values=jnp.where(enough, moved, state.values))


def applicable(m: Method, constrained: Float[Array, "P G C"], side: Side) -> Bool[Array, "P G C"]:
    """Which completions count for each constrained column: `side.applicable`, or all valid ones."""
    valid = jnp.asarray(required(side.valid, "valid", m))[..., None]
    if side.applicable is None:
        return jnp.broadcast_to(valid, constrained.shape)
    if side.applicable.shape != constrained.shape:
        raise ValueError(
            f"side.applicable has shape {side.applicable.shape}, but the constrained reward "
            f"columns have {constrained.shape} (the first column, the task, has no constraint)"
        )
    return valid & jnp.asarray(side.applicable)


def _means(
    m: Method, rewards: Float[Array, "P G"], side: Side
) -> tuple[Float[Array, " P"], Bool[Array, " P"]]:
    if rewards.ndim != 2:
        raise ValueError(
            f"method {m.name!r}: tracker {m.tracker!r} follows one reward, got {rewards.shape[2]} "
            "columns"
        )
    valid = jnp.asarray(required(side.valid, "valid", m))
    number = jnp.sum(valid, axis=1).astype(jnp.float32)
    total = jnp.sum(jnp.where(valid, rewards, 0.0), axis=1)
    return total / jnp.maximum(number, 1.0), number > 0


def of_kind(m: Method, state: PyTree, kind: type) -> PyTree:
    """The state, if it is of the kind that the method keeps.

    Raises:
      ValueError: if it is of another kind, or missing.
    """
    if not isinstance(state, kind):
        raise ValueError(
            f"method {m.name!r} keeps state: pass state=algo.init_state(m, ...), which gives a "
            f"{kind.__name__}, got {type(state).__name__}"
        )
    return state


TRACKERS: Mapping[str, Choice[Tracker]] = {
    "none": Choice(function=unchanged, formula="nothing is remembered"),
    "beta": Choice(
        function=beta_update,
        formula="alpha <- rho alpha + R, beta <- rho beta + 1 - R,"
        " rho = clip(2^(-drift / half_drift), rho_min, rho_max)",
        constants=("half_drift", "rho_min", "rho_max"),
        needs=("prompt_ids", "drift", "state"),
        watch=("reward/mean",),
        pitfalls=("A prompt that stands twice in a batch is counted once.",),
    ),
    "success": Choice(
        function=success_update,
        formula="p of a prompt <- mean_j R_j",
        needs=("prompt_ids", "state"),
        watch=("reward/mean",),
    ),
    "multipliers": Choice(
        function=multipliers_update,
        formula="lambda_k <- clip(lambda_k + dual_lr (dual_thresholds_k - mean R_k), 0, dual_max),"
        " where at least dual_min_samples completions are applicable",
        constants=("dual_lr", "dual_max", "dual_init", "dual_thresholds", "dual_min_samples"),
        needs=("columns", "state"),
        watch=("reward/mean",),
        pitfalls=("A threshold that cannot be reached drives its multiplier to dual_max.",),
    ),
}
