"""From logits to a token and its log-prob.

Letters: N rows, V vocabulary. A draw costs one uniform number a row, and the filters find their
thresholds by bisection, so that the vocabulary is never sorted.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from jgrpo.config import RolloutConfig

_BLOCK = 128
# The bits of non-negative float32 numbers are ordered as the numbers are; probabilities end at 1.
_ONE_BITS = 0x3F800000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: keep the k most likely tokens (more on ties); 0 keeps all.
      top_p: keep the fewest most likely tokens whose probability reaches this (more on ties).
      min_p: keep tokens at least this likely relative to the most likely one.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def drawing_limits(cfg: RolloutConfig) -> dict[str, Any]:
    """How tokens are drawn and when a completion ends, as `Engine.generate` takes it."""
    filters = {"top_k": cfg.top_k, "top_p": cfg.top_p, "min_p": cfg.min_p}
    return {
        "max_tokens": cfg.max_completion_tokens,
        "sampling": Sampling(temperature=cfg.temperature, **filters),
        "stop": cfg.stop,
    }


def draw(
    logits: Float[Array, "N V"], uniform: Float[Array, " N"], sampling: Sampling
) -> tuple[Int[Array, " N"], Float32[Array, " N"]]:
    """Draws one token a row.

    Args:
      logits: next-token logits.
      uniform: one number in [0, 1) a row; the draw is a deterministic function of it.
      sampling: temperature and filters.

    Returns:
      The tokens, and their log-probs in nats at the sampling temperature (at 1 if greedy) over the
      full vocabulary: what the learner computes for the same token.
    """
    logits = logits.astype(jnp.float32)
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    logp = jax.nn.log_softmax(logits, axis=-1)
    if sampling.temperature == 0:
        token = jnp.argmax(logits, axis=-1)
    else:
        token = inverse_cdf(filtered(jnp.exp(logp), sampling), uniform)
    return token, jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]


def filtered(probs: Float32[Array, "N V"], sampling: Sampling) -> Float32[Array, "N V"]:
    """Sets to zero what top-k, top-p and min-p exclude, in this order; does not renormalise."""
    if sampling.top_k > 0:
        enough = lambda keep: keep.sum(-1) >= sampling.top_k  # noqa: E731 (a predicate, used once)
        probs = _keep_most_likely(probs, enough)
    if sampling.top_p < 1.0:
        target = sampling.top_p * probs.sum(-1)
        reaches = lambda keep: jnp.where(keep, probs, 0.0).sum(-1) >= target  # noqa: E731
        probs = _keep_most_likely(probs, reaches)
    if sampling.min_p > 0.0:
        floor = sampling.min_p * probs.max(-1, keepdims=True)
        probs = jnp.where(probs >= floor, probs, 0.0)
    return probs


def _keep_most_likely(probs: Float32[Array, "N V"], enough) -> Float32[Array, "N V"]:
    """Keeps tokens above the highest threshold at which `enough(keep [N, V]) -> [N]` holds."""

    def kept(bits: Int[Array, " N"]) -> Bool[Array, "N V"]:
        threshold = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return probs >= threshold[:, None]

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        holds = enough(kept(middle))
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle - 1)

    zeros = jnp.zeros(probs.shape[:1], jnp.int32)
    # 2^30 > _ONE_BITS: after 30 halvings low == high, the exact threshold.
    low, _ = jax.lax.fori_loop(0, 30, halve, (zeros, zeros + _ONE_BITS))
    return jnp.where(kept(low), probs, 0.0)


def inverse_cdf(weights: Float32[Array, "N V"], uniform: Float[Array, " N"]) -> Int[Array, " N"]:
    """Draws an index a row with probability proportional to its weight.

    Two levels, blocks and then tokens of one block: a running sum over the whole vocabulary would
    be slower and less exact. A token of weight zero is never drawn.

    Args:
      weights: non-negative, not all zero in a row; need not sum to one.
      uniform: one number in [0, 1) a row.
    """
    n, v = weights.shape
    blocks = -(-v // _BLOCK)
    padded = jnp.pad(weights, ((0, 0), (0, blocks * _BLOCK - v))).reshape(n, blocks, _BLOCK)
    in_block = padded.sum(-1)
    block_ends = jnp.cumsum(in_block, axis=-1)
    target = uniform * block_ends[:, -1]
    block = _first_above(in_block, block_ends, target)
    chosen = jnp.take_along_axis(padded, block[:, None, None], axis=1)[:, 0]
    before = jnp.take_along_axis(block_ends, block[:, None], axis=1)[:, 0] - chosen.sum(-1)
    within = _first_above(chosen, jnp.cumsum(chosen, axis=-1), target - before)
    return block * _BLOCK + within


def _first_above(
    weights: Float32[Array, "N M"], ends: Float32[Array, "N M"], target: Float32[Array, " N"]
) -> Int[Array, " N"]:
    """First index of positive weight whose running sum exceeds the target, or the last positive.

    The weight is asked too: a running sum that an accelerator adds up as a tree may grow by a
    rounding where the weight is zero, and the target may lie just below zero or at the total.
    """
    positive = weights > 0
    above = positive & (ends > target[:, None])
    index = jnp.arange(weights.shape[1])[None]
    last_positive = jnp.max(jnp.where(positive, index, 0), axis=-1)
    return jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last_positive)
