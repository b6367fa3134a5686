"""From rollouts and advantages to the minibatches of a step.

Letters: P prompts, G completions per prompt, T completion tokens, B = P*G. Everything that depends
on more than one row (weights of tokens, above all) is fixed here, on whole minibatches, before
anything is split over microbatches or devices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Key
from numpy import ndarray

from jgrpo import algo
from jgrpo.types import AnyArray, Batch, Rollouts


def unweighted(rollouts: Rollouts, trained: Bool[AnyArray, "P G"]) -> Batch:
    """Returns the rollouts as a batch whose weights and advantages are still zero.

    Args:
      rollouts: what was sampled; its log-probs become the old log-probs.
      trained: False for completions that must not be trained on.
    """
    mask = np.asarray(rollouts.mask) & np.asarray(trained)[..., None]
    zeros = np.zeros(mask.shape, np.float32)
    return Batch(
        prompts=rollouts.prompts,
        tokens=rollouts.tokens,
        mask=mask,
        weights=zeros,
        advantages=zeros,
        old_logp=rollouts.behavior_logp,
    )


def with_advantages(batch: Batch, advantages: algo.Advantages) -> Batch:
    """Gives each token its advantage, and takes completions without one out of the batch.

    Args:
      batch: all completions of a step.
      advantages: one per completion, or one per token in rows of [P*G, T].
    """
    values, keep = np.asarray(advantages.values, np.float32), np.asarray(advantages.keep)
    if values.shape == keep.shape:
        values = np.broadcast_to(values[..., None], batch.mask.shape)
    return dataclasses.replace(
        batch,
        advantages=np.ascontiguousarray(values.reshape(batch.mask.shape)),
        mask=np.asarray(batch.mask) & keep[..., None],
    )


def minibatches(method: algo.Method, batch: Batch, count: int, key: Key[Array, ""]) -> list[Batch]:
    """Deals the prompts of a step into equal parts, and weighs the tokens of each part.

    Args:
      method: its `weights` slot is evaluated on each whole minibatch.
      batch: all completions of a step.
      count: number of parts; must divide the prompts.
      key: orders the prompts; not used for a single part.

    Raises:
      ValueError: if `count` does not divide the number of prompts.
    """
    num_prompts = batch.mask.shape[0]
    if num_prompts % count:
        raise ValueError(f"{count} minibatches do not divide {num_prompts} prompts")
    order = np.arange(num_prompts)
    if count > 1:
        order = np.asarray(jax.random.permutation(key, num_prompts))
    parts = [_take(batch, rows) for rows in np.split(order, count)]
    return [dataclasses.replace(part, weights=_weights(method, part.mask)) for part in parts]


def token_kl(batch: Batch) -> Float32[ndarray, "P G T"]:
    """old_logp - ref_logp of each trained token: the k1 estimate of the KL there, in nats."""
    assert batch.ref_logp is not None
    gap = np.asarray(batch.old_logp) - np.asarray(batch.ref_logp)
    return np.where(np.asarray(batch.mask), gap, np.float32(0))


def mean_logp(batch: Batch) -> Float32[ndarray, "P G"]:
    """Mean old log-prob of each completion's trained tokens, in nats; 0 if it has none."""
    total = np.where(np.asarray(batch.mask), np.asarray(batch.old_logp), 0.0).sum(-1)
    return (total / np.maximum(np.asarray(batch.mask).sum(-1), 1)).astype(np.float32)


def _take(batch: Batch, rows: Int[ndarray, " R"]) -> Batch:
    return jax.tree.map(lambda x: np.asarray(x)[rows], batch)


def _weights(method: algo.Method, mask: Bool[AnyArray, "P G T"]) -> Float32[ndarray, "P G T"]:
    rows = jnp.asarray(mask).reshape(-1, mask.shape[-1])
    return np.asarray(algo.token_weights(method, rows)).reshape(mask.shape)
