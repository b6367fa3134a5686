"""SHAPE, the choices that weigh length against success; rules and letters are those of `shaping`.

L is a length budget or limit in tokens, n the length of a completion.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side, required
from jgrpo.types import AnyArray


def length_budget(m: Method, step: Int[AnyArray, ""]) -> Float[Array, ""]:
    """The budget of a step in tokens: `budget_start_tokens`, times `budget_decay` every so often.

    B(t) = max(1, B_0 gamma^floor(t / T)), T = `budget_every_steps`.

    Args:
      m: the method.
      step: number of the step, from 0.

    References:
      Train Long, Think Short, arXiv:2508.08940. Departs: none.

    Example:
      >>> from jgrpo.algo import method
      >>> m = method("train_long_think_short")
      >>> steps = jnp.array([0, 149, 150, 300, 450])
      >>> [round(float(length_budget(m, step)), 2) for step in steps]
      [256.0, 256.0, 179.2, 125.44, 87.81]
    """
    stages = jnp.floor(jnp.asarray(step) / m.budget_every_steps).astype(jnp.float32)
    return jnp.maximum(1.0, m.budget_start_tokens * m.budget_decay**stages)


def budget_triangle(m: Method, rewards: Float[Array, "P G K"], side: Side) -> Float[Array, "P G"]:
    """Success, format, and a length reward that rises to 1 at the budget, to fall to 0 at twice it.

    n <= L: n / L; then 1 - (n - L) / L, at least 0. Columns: correct, and format if there is one.

    References:
      Train Long, Think Short, arXiv:2508.08940. Departs: the weight of the format is assumed.
    """
    excess = _lengths(m, side) / length_budget(m, required(side.step, "step", m))
    return _with_length(m, rewards, jnp.where(excess <= 1.0, excess, _fall(excess)))


def budget_band(m: Method, rewards: Float[Array, "P G K"], side: Side) -> Float[Array, "P G"]:
    """As `budget_triangle`, with a length reward of 1 for every completion within the budget.

    References:
      Train Long, Think Short, arXiv:2508.08940. Departs: the weight of the format is assumed.
    """
    excess = _lengths(m, side) / length_budget(m, required(side.step, "step", m))
    return _with_length(m, rewards, jnp.where(excess <= 1.0, 1.0, _fall(excess)))


def _fall(excess: Float[Array, "P G"]) -> Float[Array, "P G"]:
    return jnp.maximum(2.0 - excess, 0.0)


def _with_length(
    m: Method, rewards: Float[Array, "P G K"], length: Float[Array, "P G"]
) -> Float[Array, "P G"]:
    if not 1 <= rewards.shape[2] <= 2:
        raise ValueError(
            f"method {m.name!r}: shape {m.shape!r} takes 1 or 2 reward columns, correctness and "
            f"format, got {rewards.shape[2]}"
        )
    total = m.correct_weight * rewards[..., 0] + m.length_weight * length
    return total if rewards.shape[2] == 1 else total + m.format_weight * rewards[..., 1]


def lambda_switch(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """Makes short success worth more than long, for the prompts that are solved most often.

    The max(1, ceil(lambda P)) prompts of the highest share of correct completions: a correct one
    gets 1 - alpha sigmoid((n - mean) / std) over the lengths of the prompt's correct ones, a wrong
    one 0. Others keep their reward.

    Args:
      m: reads `switch_share` (lambda) and `length_alpha`.
      rewards: 1 for correct, 0 for wrong.
      side: `lengths`.

    References:
      GRPO-lambda, arXiv:2505.18086. Departs: alpha is not published; population std, and 1 in place
      of a std of 0, are assumed.
    """
    lengths, valid = _lengths(m, side), jnp.asarray(required(side.valid, "valid", m))
    correct = (rewards >= 1.0) & valid
    right = jnp.maximum(correct.sum(axis=1, keepdims=True), 1)
    mean = jnp.where(correct, lengths, 0.0).sum(axis=1, keepdims=True) / right
    apart = jnp.where(correct, lengths - mean, 0.0)
    std = jnp.sqrt(jnp.square(apart).sum(axis=1, keepdims=True) / right)
    fine = m.length_alpha * jax.nn.sigmoid(apart / jnp.where(std > 0, std, 1.0))
    share = correct.sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)
    shortened = jnp.where(correct, 1.0 - fine, 0.0)
    return jnp.where(_highest(share, m.switch_share)[:, None], shortened, rewards)


def _highest(values: Float[Array, " P"], share: float) -> Bool[Array, " P"]:
    """The largest values, that share of all rounded up, at least one; of equals the first."""
    number = max(1, math.ceil(round(values.shape[0] * share, 9)))  # .1 * 30 is more than 3
    rank = jnp.argsort(jnp.argsort(-values, stable=True))
    return rank < number


def surrogate(m: Method, rewards: Float[Array, "P G K"], side: Side) -> Float[Array, "P G"]:
    """Reward without labels: the format, and a length that is neither short nor long.

    x = n / L: 1 - (1 - x / p)^2 up to p, then 1 - 2 ((x - p) / (1 - p))^2; with an answer the mean
    of the two format columns is added, without one the reward is at most 0. Columns: thinking is
    marked, an answer can be read.

    Args:
      m: reads `length_peak` (p).
      rewards: two columns of 0 or 1.
      side: `lengths` and `max_completion_tokens` (L).

    References:
      Surrogate signals, arXiv:2505.19439; authors' math_reward.py. Departs: L is the run's longest
      completion (theirs: 3072).
    """
    if rewards.shape[2] != 2:
        raise ValueError(
            f"method {m.name!r}: shape 'surrogate' takes 2 reward columns, marked thinking and a "
            f"readable answer, got {rewards.shape[2]}"
        )
    lengths, p = _lengths(m, side), m.length_peak
    x = lengths / required(side.max_completion_tokens, "max_completion_tokens", m)
    late = jnp.square((x - p) / (1.0 - p))
    length = jnp.where(x <= p, 1.0 - jnp.square(1.0 - x / p), 1.0 - 2.0 * late)
    has_answer = rewards[..., 1] > 0
    return jnp.where(has_answer, rewards.mean(axis=2) + length, jnp.minimum(length, 0.0))


def gated_sum(m: Method, rewards: Float[Array, "P G K"], side: Side) -> Float[Array, "P G"]:
    """Format and outcome, and the score of the reasoning where the outcome is right.

    R_f + R_o + R_o R_t. Columns: format, outcome, reasoning.

    References:
      Posterior-GRPO, arXiv:2508.05170. Departs: none.
    """
    if rewards.shape[2] != 3:
        raise ValueError(
            f"method {m.name!r}: shape 'gated_sum' takes 3 reward columns, format, outcome and "
            f"reasoning, got {rewards.shape[2]}"
        )
    form, outcome, thinking = (rewards[..., k] for k in range(3))
    return form + outcome + outcome * thinking


def _lengths(m: Method, side: Side) -> Float[Array, "P G"]:
    return jnp.asarray(required(side.lengths, "lengths", m)).astype(jnp.float32)


_WATCH = ("completion/length_mean", "reward/mean")
_BUDGET = (
    *("budget_start_tokens", "budget_decay", "budget_every_steps"),
    *("correct_weight", "length_weight", "format_weight"),
)
LENGTHS: Mapping[str, Choice] = {
    "budget_triangle": Choice(
        function=budget_triangle,
        formula="R' = w_c o + w_n min(n/L, max(2 - n/L, 0)) + w_f f, L = max(1, L_0 g^floor(t/T))",
        constants=_BUDGET,
        needs=("columns", "lengths", "step"),
        watch=_WATCH,
        pitfalls=("A wrong completion is paid for its length too: that is the paper's design.",),
    ),
    "budget_band": Choice(
        function=budget_band,
        formula="R' = w_c o + w_n min(1, max(2 - n/L, 0)) + w_f f, L = max(1, L_0 g^floor(t/T))",
        constants=_BUDGET,
        needs=("columns", "lengths", "step"),
        watch=_WATCH,
        pitfalls=("Short and wrong is worth as much length reward as short and right.",),
    ),
    "lambda_switch": Choice(
        function=lambda_switch,
        formula="for the ceil(switch_share P) prompts solved most often"
        " R' = 1 - length_alpha sigmoid((n - mean) / std) if right, else 0; others R' = R",
        constants=("switch_share", "length_alpha"),
        needs=("lengths",),
        watch=_WATCH,
        pitfalls=("Rewards must be 0 and 1: anything below 1 counts as wrong.",),
    ),
    "surrogate": Choice(
        function=surrogate,
        formula="R' = (f_1 + f_2)/2 + s(n/L) with an answer, else min(0, s);"
        " s(x) = 1 - (1 - x/p)^2 up to p = length_peak, then 1 - 2((x - p)/(1 - p))^2",
        constants=("length_peak",),
        needs=("columns", "lengths"),
        watch=_WATCH,
        pitfalls=("No answer is ever compared with a right one: watch the held-out accuracy.",),
    ),
    "gated_sum": Choice(
        function=gated_sum,
        formula="R' = f + o + o s: format, outcome, score of the reasoning",
        needs=("columns",),
        watch=("reward/mean",),
    ),
}
