"""From rollouts and advantages to the minibatches of a step.

Letters: P prompts, G completions per prompt, T completion tokens, B = P*G. Everything that depends
on more than one row (weights of tokens, above all) is fixed here, on whole minibatches, before
anything is split over microbatches or devices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey
from jaxtyping import Array, Bool, Float32, Int, Key
from numpy import ndarray

from jgrpo import algo
from jgrpo.types import AnyArray, Batch, Rollouts, Standing


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
        experts=rollouts.experts,
    )


def bare(batch: Batch) -> Batch:
    """The batch without what only a loss needs, so that every forward pass is the same program."""
    return Batch(
        prompts=batch.prompts,
        tokens=batch.tokens,
        mask=batch.mask,
        weights=batch.weights,
        advantages=batch.advantages,
        old_logp=batch.old_logp,
        experts=batch.experts,
    )


def rearranged(batch: Batch, prompt: Int[ndarray, " Q"], place: Int[ndarray, "R C"]) -> Batch:
    """The batch with its prompts and completions in another order and number.

    Args:
      batch: on the host.
      prompt: number of each prompt wanted.
      place: number of each completion wanted, group by group; -1: none, all its fields are zero.
    """

    def take(path: tuple[object, ...], x: AnyArray) -> ndarray:
        if GetAttrKey("prompts") in path:
            return np.asarray(x)[prompt]
        taken = np.asarray(x).reshape(-1, *x.shape[2:])[np.maximum(place, 0)]
        taken[place < 0] = 0
        return taken

    return jax.tree_util.tree_map_with_path(take, batch)


def with_advantages(batch: Batch, advantages: algo.Advantages) -> Batch:
    """Gives each token its advantage, and takes completions without one out of the batch.

    A critic's targets go with the advantages.

    Args:
      batch: all completions of a step.
      advantages: one per completion, or one per token in rows of [P*G, T].
    """
    values, keep = np.asarray(advantages.values, np.float32), np.asarray(advantages.keep)
    if values.shape == keep.shape:
        values = np.broadcast_to(values[..., None], batch.mask.shape)
    returns = advantages.returns
    return dataclasses.replace(
        batch,
        advantages=np.ascontiguousarray(values.reshape(batch.mask.shape)),
        mask=np.asarray(batch.mask) & keep[..., None],
        returns=None if returns is None else np.asarray(returns).reshape(batch.mask.shape),
    )


def with_injected(
    batch: Batch, injected: Bool[AnyArray, "P G T"], winners: float, losers: float
) -> Batch:
    """Weighs tokens that nobody drew: their advantages, or their mask.

    Args:
      batch: with advantages.
      injected: True at these tokens.
      winners: weight of their policy term where the advantage is above 0; a weight of 0 takes them
        out of the mask, and so out of all counts.
      losers: the same where it is not.
    """
    marked, advantages = np.asarray(injected), np.asarray(batch.advantages)
    weight = np.where(advantages > 0, np.float32(winners), np.float32(losers))
    factor = np.where(marked, weight, np.float32(1))
    mask = np.asarray(batch.mask) & (factor > 0)
    kept = np.where(factor > 0, factor, np.float32(1))
    return dataclasses.replace(batch, mask=mask, advantages=advantages * kept)


def with_standing(batch: Batch, standing: Standing) -> Batch:
    """Weighs the completions of a plan: their gradients, and those trained by their likelihood.

    Args:
      batch: with advantages; completions trained by their likelihood are in its mask, with ratio 1.
      standing: how the completions stand in their groups.
    """
    weight, likelihood = np.asarray(standing.weight), np.asarray(standing.likelihood)
    imitated = (likelihood > 0)[..., None]
    advantages = np.asarray(batch.advantages) * weight[..., None]
    return dataclasses.replace(
        batch,
        advantages=np.where(imitated, likelihood[..., None], advantages).astype(np.float32),
        mask=np.asarray(batch.mask) & ((weight != 0)[..., None] | imitated),
    )


def minibatches(
    method: algo.Method,
    batch: Batch,
    count: int,
    key: Key[Array, ""],
    present: Bool[AnyArray, "P G"] | None = None,
    imitated: Bool[AnyArray, "P G"] | None = None,
) -> list[Batch]:
    """Deals the prompts of a step into equal parts, and weighs the tokens of each part.

    Args:
      method: its `weights` slot is evaluated on each whole minibatch.
      batch: all completions of a step.
      count: number of parts; must divide the prompts.
      key: orders the prompts; not used for a single part.
      present: False at places of groups in which no completion stands; None: all are full.
      imitated: True at completions trained by their likelihood: the weights of their tokens add up
        to 1 / P, and others are weighed as if they were not there; None: there are none.

    Raises:
      ValueError: if `count` does not divide the number of prompts.
    """
    num_prompts = batch.mask.shape[0]
    if num_prompts % count:
        raise ValueError(f"{count} minibatches do not divide {num_prompts} prompts")
    order = np.arange(num_prompts)
    if count > 1:
        order = np.asarray(jax.random.permutation(key, num_prompts))
    there = np.ones(batch.mask.shape[:2], bool) if present is None else np.asarray(present)
    others = np.zeros(there.shape, bool) if imitated is None else np.asarray(imitated)
    return [
        dataclasses.replace(part, weights=_weights(method, part.mask, there[rows], others[rows]))
        for rows in np.split(order, count)
        for part in [_take(batch, rows)]
    ]


def with_entropy_mask(
    method: algo.Method, batch: Batch, entropy: Float32[AnyArray, "P G T"]
) -> Batch:
    """Marks the tokens whose entropy is in the top quantile of all trained ones.

    Args:
      method: for the quantile.
      batch: all completions of a step, their final mask in place.
      entropy: of the policy before each token, at the weights of the start of the step, in nats.
    """
    rows = lambda x: jnp.asarray(x).reshape(-1, x.shape[-1])  # noqa: E731
    marked = np.asarray(algo.top_entropy(method, rows(entropy), rows(batch.mask)))
    return dataclasses.replace(batch, entropy_mask=marked.reshape(batch.mask.shape))


def token_kl(batch: Batch) -> Float32[ndarray, "P G T"]:
    """old_logp - ref_logp of each token drawn and trained: the k1 estimate of the KL, in nats."""
    assert batch.ref_logp is not None
    gap = np.asarray(batch.old_logp) - np.asarray(batch.ref_logp)
    return np.where(_drawn(batch), gap, np.float32(0))


def mean_logp(batch: Batch) -> Float32[ndarray, "P G"]:
    """Mean old log-prob of each completion's drawn and trained tokens, in nats; 0 without any."""
    drawn = _drawn(batch)
    total = np.where(drawn, np.asarray(batch.old_logp), 0.0).sum(-1)
    return (total / np.maximum(drawn.sum(-1), 1)).astype(np.float32)


def answer_logp(batch: Batch, segments: Int[AnyArray, "P G T"]) -> Float32[ndarray, "P G"]:
    """Mean reference log-prob of the tokens of each completion's last segment; 0 without any."""
    assert batch.ref_logp is not None
    number = np.where(np.asarray(batch.mask), np.asarray(segments), -1)
    last = number.max(axis=-1, keepdims=True)
    answer = (number == last) & (last >= 0)
    total = np.where(answer, np.asarray(batch.ref_logp), 0.0).sum(-1)
    return (total / np.maximum(answer.sum(-1), 1)).astype(np.float32)


def _drawn(batch: Batch) -> Bool[ndarray, "P G T"]:
    """True at trained tokens that the policy drew: the others have no old log-prob."""
    mask = np.asarray(batch.mask)
    return mask if batch.unit_ratio is None else mask & ~np.asarray(batch.unit_ratio)


def _take(batch: Batch, rows: Int[ndarray, " R"]) -> Batch:
    return jax.tree.map(lambda x: np.asarray(x)[rows], batch)


def _weights(
    method: algo.Method,
    mask: Bool[AnyArray, "P G T"],
    present: Bool[ndarray, "P G"],
    imitated: Bool[ndarray, "P G"],
) -> Float32[ndarray, "P G T"]:
    """Weights of the rows that exist: those of an empty place must not count as completions."""
    weights, mask = np.zeros(mask.shape, np.float32), np.asarray(mask)
    compared = present & ~imitated
    weights[compared] = algo.token_weights(method, jnp.asarray(mask[compared]))
    if imitated.any():
        tokens = np.maximum(mask.sum(-1, keepdims=True), 1) * len(mask)
        weights[imitated] = (mask / tokens)[imitated]
    return weights


def explained_variance(batch: Batch) -> float:
    """Share of the variance of the returns that the critic's old values explain; at most 1.

    0 for constant returns, and for a critic that predicts a constant.
    """
    assert batch.old_values is not None
    assert batch.returns is not None
    mask = np.asarray(batch.mask)
    returns = np.asarray(batch.returns, np.float64)[mask]
    error = returns - np.asarray(batch.old_values, np.float64)[mask]
    if returns.size == 0 or (variance := returns.var()) == 0:
        return 0.0
    return float(1.0 - error.var() / variance)
