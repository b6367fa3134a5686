"""PLAN, the choice that ends completions early: behind a step that a preference model doubts.

Letters: P prompts, G completions per prompt, T token positions. Rules are those of `rounds`.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from jgrpo.algo.choice import Choice
from jgrpo.algo.preference import steps
from jgrpo.algo.revising import Planner
from jgrpo.algo.rounds import Finished, Plan, Seen, Want, then_if, uniform
from jgrpo.algo.row import Method
from jgrpo.types import AnyArray


def stops(
    m: Method,
    scores: Float[AnyArray, "P G T"],
    segments: Int[AnyArray, "P G T"],
    mask: Bool[AnyArray, "P G T"],
) -> Int[Array, "P G"]:
    """Tokens of each completion up to the end of the first step that is doubted; 0: there is none.

    Step k is doubted if k >= step_low and r_k < stop_below (`preference.steps`). A completion's
    last step never is: there is nothing behind it to be left out.

    Args:
      m: the method.
      scores: of the prompt and the tokens before each token.
      segments: number of the step of each token; -1 where there is none.
      mask: True at tokens of completions.

    Example:
      >>> import numpy as np
      >>> from jgrpo.algo import method
      >>> f = np.array([[[0, 0.5, 1.3, 1.1, 2.0]]])  # r = .6225, .6900, .4502, ..., a token each
      >>> number, mask = np.arange(5)[None, None], np.ones((1, 1, 5), bool)
      >>> [int(stops(method("ws_grpo", step_low=low), f, number, mask)[0, 0]) for low in (3, 4)]
      [3, 0]
    """
    found, there = steps(scores, segments, mask), jnp.asarray(mask)
    place = jnp.arange(1, there.shape[-1] + 1)[None, None]
    goes_on = place < jnp.sum(there, axis=-1, keepdims=True)
    enough = jnp.cumsum(found.ends, axis=-1) >= m.step_low
    doubted = found.ends & goes_on & enough & (found.rewards < m.stop_below)
    return jnp.where(jnp.any(doubted, axis=-1), jnp.argmax(doubted, axis=-1) + 1, 0)


def stop(m: Method, size: int, prompts: int) -> Plan:
    """A completion ends behind the first step that is doubted: the exit phrase, then the answer.

    All tokens but the phrase are the policy's own, with the log-probs that they were drawn at.

    References:
      After WS-GRPO, arXiv:2602.17025, whose preference below 1/2 means that going on has not
      helped. Departs: the rule is ours; the paper rewards such steps less and lets them go on.
    """

    def cuts(seen: Seen) -> Int[ndarray, "P G"]:
        assert seen.stops is not None
        found = seen.stops[:, :size]
        return np.where(found <= seen.room, found, 0)

    def when(seen: Seen) -> Bool[ndarray, " P"]:
        return np.asarray(cuts(seen).any(axis=1))

    def answers(seen: Seen, p: int) -> list[Want]:
        own = cuts(seen)[p].tolist()
        given = {"begin": "path", "phrase": True}
        return [Want(p, size + g, 1, of=g, tokens=n, **given) for g, n in enumerate(own) if n]

    def finish(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        ended = seen.lengths[:, size : 2 * size] > 0
        metrics = {"ws/stopped_fraction": float(ended.mean())}
        return Finished(place=np.where(ended, place + size, place), metrics=metrics)

    plan = then_if(uniform(size), "stop", when, answers, more=size, finish=finish, reads=False)
    return dataclasses.replace(plan, uneven=False)  # groups stay whole, under their own prompts


ENDINGS: Mapping[str, Choice[Planner]] = {
    "stop": Choice(
        function=stop,
        formula="a completion ends behind the first step k >= step_low with r_k < stop_below, by"
        " the exit phrase and an answer, r_k = sigmoid(f_k - f_(k-1)), f_k the preference model's"
        " score after k steps",
        constants=("step_low", "stop_below", "loss_on_injected"),
        needs=("rounds", "prefix_scores", "segments", "mask", "stops"),
        watch=("ws/stopped_fraction", "completion/length_mean", "plan/drawn_tokens"),
        pitfalls=(
            "Whole completions are drawn before they are cut: a step draws more tokens than it "
            "trains. Held-out prompts are answered without the rule.",
        ),
    ),
}
