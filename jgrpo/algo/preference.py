"""AUX and SHAPE for weak supervision: preferences between completions, and steps rewarded by them.

A preference model scores a prompt and the beginning of a completion; of two it prefers the one with
the higher score. It is trained on whole completions of one prompt by their outcome alone, and then
says of every step whether going on has helped. Letters: P prompts, G completions per prompt, T
token positions.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jgrpo.algo.choice import Choice
from jgrpo.algo.row import Method
from jgrpo.algo.side import Side, required
from jgrpo.types import AnyArray

# (scores of whole completions, +1 right, -1 wrong, 0 neither) -> loss
Aux: TypeAlias = Callable[[Float[Array, "P G"], Int[Array, "P G"]], Float[Array, ""]]


def bradley_terry(
    scores: Float[AnyArray, "P G"], outcomes: Int[AnyArray, "P G"]
) -> Float[Array, ""]:
    """Mean over pairs of a right and a wrong completion of one prompt of softplus(wrong - right).

    0 without a pair.

    Args:
      scores: of whole completions.
      outcomes: 1 right, -1 wrong, 0 neither.

    References:
      WS-GRPO, arXiv:2602.17025, phase I. Departs: all pairs of a prompt.

    Example:
      >>> import numpy as np
      >>> loss = bradley_terry(np.array([[1.0, 0.0, 3.0]]), np.array([[1, -1, 0]]))
      >>> round(float(loss), 6)  # log(1 + e^-1)
      0.313262
    """
    pairs = preferred(outcomes)
    values = jnp.asarray(scores)
    each = jax.nn.softplus(values[:, None, :] - values[:, :, None])
    return jnp.sum(jnp.where(pairs, each, 0.0)) / jnp.maximum(jnp.sum(pairs), 1)


def preferred(outcomes: Int[AnyArray, "P G"]) -> Bool[Array, "P G G"]:
    """True at pairs of a prompt of which the first is right and the second wrong."""
    sign = jnp.asarray(outcomes)
    return (sign[:, :, None] > 0) & (sign[:, None, :] < 0)


class Steps(NamedTuple):
    """The steps of completions, at the last token of each.

    Attributes:
      ends: True there.
      rewards: chance that the beginning with the step is preferred to the one without it; 0
        elsewhere.
    """

    ends: Bool[Array, "P G T"]
    rewards: Float[Array, "P G T"]


def steps(
    scores: Float[AnyArray, "P G T"],
    segments: Int[AnyArray, "P G T"],
    mask: Bool[AnyArray, "P G T"],
) -> Steps:
    """What each step has added: r_k = sigmoid(f_k - f_(k-1)), f_0 that of the prompt alone.

    Args:
      scores: of the prompt and the tokens before each token. That of a whole completion lacks its
        last token.
      segments: number of the step of each token; -1 where there is none.
      mask: True at tokens of completions.

    Example:
      >>> import numpy as np
      >>> found = steps(  # f = 0, .5, 1.3, 1.1 after steps of one token each
      ...     np.array([[[0, 0.5, 1.3, 1.1]]]),
      ...     np.array([[[0, 1, 2, 2]]]),
      ...     np.ones((1, 1, 4), bool))
      >>> [round(float(x), 4) for x in found.rewards[0, 0]]
      [0.6225, 0.69, 0.0, 0.4502]
    """
    number, there = jnp.asarray(segments), jnp.asarray(mask)
    values = jnp.where(there, jnp.asarray(scores).astype(jnp.float32), 0.0)
    later = lambda x, last: jnp.concatenate([x[..., 1:], last], axis=-1)  # noqa: E731
    follows = later(there, jnp.zeros_like(there[..., :1]))
    after = jnp.where(follows, later(values, values[..., -1:]), values)
    ends = there & (~follows | (later(number, number[..., -1:]) != number))
    place = jnp.where(ends, jnp.arange(there.shape[-1]), -1)
    before = jax.lax.cummax(place, axis=2)
    before = jnp.concatenate([jnp.full_like(before[..., :1], -1), before[..., :-1]], axis=-1)
    score = jnp.take_along_axis(after, jnp.maximum(before, 0), axis=-1)
    score = jnp.where(before < 0, values[..., :1], score)
    return Steps(ends, jnp.where(ends, jax.nn.sigmoid(after - score), 0.0))


def weak_mean(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """step_coef mean_k r_k + outcome_coef R - step_penalty [K < step_low or K > step_high].

    K steps; the mean over no step is 0.

    References:
      WS-GRPO, arXiv:2602.17025, phase II. Departs: the size of the penalty and which coefficient is
      which are assumed.

    Example:
      >>> import numpy as np
      >>> from jgrpo.algo import method
      >>> side = Side(
      ...     prefix_scores=np.array([[[0, 0.5, 1.3, 1.1]]], np.float32),
      ...     segments=np.array([[[0, 1, 2, 2]]]), mask=np.ones((1, 1, 4), bool))
      >>> round(float(weak_mean(method("ws_grpo"), jnp.ones((1, 1)), side)[0, 0]), 4)
      5.5875
    """
    found, number = _steps(m, side)
    mean = jnp.sum(found.rewards, axis=-1) / jnp.maximum(number, 1)
    return _weak(m, rewards, mean, number)


def weak_sum(m: Method, rewards: Float[Array, "P G"], side: Side) -> Float[Array, "P G"]:
    """As `weak_mean`, with the sum over the steps in place of the mean."""
    found, number = _steps(m, side)
    return _weak(m, rewards, jnp.sum(found.rewards, axis=-1), number)


def _steps(m: Method, side: Side) -> tuple[Steps, Int[Array, "P G"]]:
    scores = required(side.prefix_scores, "prefix_scores", m)
    found = steps(scores, required(side.segments, "segments", m), required(side.mask, "mask", m))
    return found, jnp.sum(found.ends, axis=-1)


def _weak(
    m: Method, rewards: Float[Array, "P G"], gain: Float[Array, "P G"], number: Int[Array, "P G"]
) -> Float[Array, "P G"]:
    outside = (number < m.step_low) | (number > m.step_high)
    return m.step_coef * gain + m.outcome_coef * rewards - m.step_penalty * outside


_CONSTANTS = ("step_coef", "outcome_coef", "step_penalty", "step_low", "step_high")
_FORMULA = (
    "R' = step_coef {} r_k + outcome_coef R - step_penalty [K < step_low or K > step_high],"
    " r_k = sigmoid(f_k - f_(k-1)), f_k the preference model's score after k of K steps"
)
_NEEDS = ("prefix_scores", "segments", "mask")
_WATCH = ("preference/steps_mean", "preference/helped_fraction", "completion/length_mean")
WEAK: Mapping[str, Choice] = {
    "weak_mean": Choice(
        function=weak_mean,
        formula=_FORMULA.format("mean_k"),
        constants=_CONSTANTS,
        needs=_NEEDS,
        watch=_WATCH,
        pitfalls=(
            "A mean over steps pays useful steps and not short completions: the penalty on the "
            "number of steps does the shortening.",
        ),
    ),
    "weak_sum": Choice(
        function=weak_sum,
        formula=_FORMULA.format("sum_k"),
        constants=_CONSTANTS,
        needs=_NEEDS,
        watch=_WATCH,
        pitfalls=("More steps give more reward, up to step_high.",),
    ),
}


def nothing(scores: Float[AnyArray, "P G"], outcomes: Int[AnyArray, "P G"]) -> Float[Array, ""]:
    """No loss."""
    return jnp.zeros(())


AUXES: Mapping[str, Choice[Aux]] = {
    "none": Choice(function=nothing, formula="nothing is trained beside the policy"),
    "preference": Choice(
        function=bradley_terry,
        formula="in place of the policy: min mean softplus(f(wrong) - f(right)) over the pairs of"
        " a prompt, f = w2 . relu(W1 e + b1), e the mean of the policy's hidden states",
        needs=("preference",),
        watch=("preference/loss", "preference/accuracy", "preference/pairs"),
        pitfalls=("Prompts that are always or never solved give no pair.",),
    ),
}
