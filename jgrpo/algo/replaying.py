"""REPLAY: which stored completions come back to be trained again, and which are stored.

Letters: P prompts of a step, G completions per prompt, S prompts with something stored, K buckets.
A bucket holds the prompts of one success count, from 0 to G. Drawing is an integer rule with
re-draws: it runs on the host in float64, by a generator that the key seeds.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from numpy import ndarray

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.row import Method

# (m, successes of each stored prompt when last asked, completions of a group, key, R) -> places
Replay: TypeAlias = Callable[
    [Method, Int[ndarray, " S"], int, Key[Array, ""], int], Int[ndarray, " R"]
]


def replay(
    m: Method, successes: Int[ndarray, " S"], size: int, key: Key[Array, ""], count: int
) -> Int[ndarray, " R"]:
    """Places, among the prompts with something stored, of those that are asked again.

    Args:
      m: the method.
      successes: right completions of each prompt's group when it was last asked.
      size: completions of a group.
      key: names the draw.
      count: prompts wanted.

    Returns:
      Different places; as many as wanted, or all there are.
    """
    return chosen(REPLAYS, m.replay).function(m, successes, size, key, min(count, len(successes)))


def admitted(
    correct: Bool[ndarray, "P G"], valid: Bool[ndarray, "P G"], finished: Bool[ndarray, "P G"]
) -> Bool[ndarray, "P G"]:
    """Completions that are stored: right ones of groups that are neither all right nor all wrong.

    Args:
      correct: right completions.
      valid: completions that count.
      finished: completions that ended themselves.

    References:
      ExGRPO, arXiv:2510.02245, `exgrpo_admit`. Departs: a completion that was cut off is not
      stored.
    """
    right = correct & valid
    mixed = right.any(axis=1) & ~all_right(correct, valid)
    return right & mixed[:, None] & finished


def all_right(correct: Bool[ndarray, "P G"], valid: Bool[ndarray, "P G"]) -> Bool[ndarray, " P"]:
    """Groups that have nothing to teach any more: their prompts are retired."""
    return np.asarray(valid.any(axis=1) & (correct | ~valid).all(axis=1))


def bucket_probs(m: Method, sizes: Int[ndarray, " K"]) -> Float[ndarray, " K"]:
    """Chance of each bucket that is not empty: a normal density around half of the group.

    It does not depend on how many prompts a bucket holds.

    Args:
      m: the method; `replay_spread` is the density's deviation, in successes.
      sizes: prompts with 0, 1, ..., G successes.

    References:
      ExGRPO, arXiv:2510.02245, `exgrpo_bucket_probs`. Departs: none.

    Example:
      >>> from jgrpo.algo import METHODS
      >>> sizes = np.array([0, 10, 0, 5, 20, 0, 0, 2, 0])
      >>> probs = bucket_probs(METHODS["prioritized_replay"], sizes)
      >>> [round(float(p), 3) for p in probs if p]
      [0.007, 0.372, 0.614, 0.007]
    """
    successes = np.arange(len(sizes), dtype=np.float64)
    away = (successes - (len(sizes) - 1) / 2) / m.replay_spread
    exponent = np.where(sizes > 0, -0.5 * away**2, -np.inf)
    if not (sizes > 0).any():
        return np.zeros(len(sizes))
    weights = np.exp(exponent - exponent.max())  # else all 0, far from the middle of large groups
    return weights / weights.sum()


def nothing(
    m: Method, successes: Int[ndarray, " S"], size: int, key: Key[Array, ""], count: int
) -> Int[ndarray, " R"]:
    """No prompt."""
    return np.zeros(0, np.int64)


def by_bucket(
    m: Method, successes: Int[ndarray, " S"], size: int, key: Key[Array, ""], count: int
) -> Int[ndarray, " R"]:
    """Draws buckets, then prompts of each without replacement.

    Counts of the buckets are multinomial; what is more than a bucket holds is drawn again among
    those with room.

    References:
      ExGRPO, arXiv:2510.02245; the authors' sampler. Departs: none.
    """
    numbers = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    sizes = np.bincount(successes, minlength=size + 1)
    taken, left = np.zeros_like(sizes), count
    while left:
        taken = taken + numbers.multinomial(left, bucket_probs(m, sizes * (taken < sizes)))
        left = int(np.maximum(taken - sizes, 0).sum())
        taken = np.minimum(taken, sizes)
    order = numbers.permutation(len(successes))
    places = [order[successes[order] == k][:n] for k, n in enumerate(taken.tolist())]
    return np.concatenate(places).astype(np.int64)


REPLAYS: Mapping[str, Choice[Replay]] = {
    "none": Choice(function=nothing, formula="nothing is stored"),
    "buckets": Choice(
        function=by_bucket,
        formula="right completions of groups with 0 < k < G right ones are stored; once more than"
        " replay_start of a step was right, replay_share of the prompts of a step are stored ones,"
        " bucket k with chance N(k; G / 2, replay_spread^2), equal chances within; of a prompt's"
        " replay_candidates newest the completion of the lowest entropy; prompts with k = G are"
        " asked no more",
        constants=(
            *("replay_share", "replay_start", "replay_spread", "replay_candidates"),
            *("replay_capacity", "max_value"),
        ),
        needs=("replay",),
        watch=("replay/fraction", "replay/stored_prompts", "replay/retired_prompts"),
        pitfalls=(
            "It needs prompts that come again to retire any: endless generated data has none.",
            "The mean reward of a step is not that of the policy: every replayed row is right.",
        ),
    ),
}
