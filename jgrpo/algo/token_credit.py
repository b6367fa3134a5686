"""POST, the part that gives single tokens their advantage.

Letters: P prompts, G completions per prompt, K reward columns, T token positions, B = P*G. Every
function has the signature `Post` of `posts.py` and returns values of [B, T], 0 at masked positions.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jgrpo.algo.choice import chosen
from jgrpo.algo.penalties import penalised, token_penalty
from jgrpo.algo.record import Advantages
from jgrpo.algo.returns import gae
from jgrpo.algo.row import Method
from jgrpo.algo.scales import SCALES
from jgrpo.algo.side import Side, required
from jgrpo.algo.statistics import batch_deviations, rows


def token_whitened(
    m: Method,
    values: Float[Array, "P G"],
    rewards: Float[Array, "P G"] | Float[Array, "P G K"],
    side: Side,
    state: PyTree,
) -> Advantages:
    """Spreads advantages over the tokens and whitens them over all tokens of the batch.

    References:
      REINFORCE++-baseline, arXiv:2501.03262, as in verl. Departs: a batch of fewer than two tokens
      gets 0 (verl raises).
    """
    mask = _mask(m, side)
    spread = jnp.broadcast_to(values[..., None], mask.shape)
    return _whitened(m, rows(spread), mask, side, state)


def returns_whitened(
    m: Method,
    values: Float[Array, "P G"],
    rewards: Float[Array, "P G"] | Float[Array, "P G K"],
    side: Side,
    state: PyTree,
) -> Advantages:
    """The return from each token on, KL penalties of single tokens included, whitened.

    References:
      REINFORCE++, arXiv:2501.03262, as in verl. Departs: none.
    """
    mask = _mask(m, side)
    reward = _token_rewards(m, values, mask, side)
    returns, _ = gae(reward, jnp.zeros_like(reward), rows(mask), gamma=m.gamma, gae_lambda=1.0)
    return _whitened(m, returns, mask, side, state)


def gae_whitened(
    m: Method,
    values: Float[Array, "P G"],
    rewards: Float[Array, "P G"] | Float[Array, "P G K"],
    side: Side,
    state: PyTree,
) -> Advantages:
    """Generalised advantage estimation from a critic's values, whitened, with its targets.

    The end of a completion has value 0, also where the length limit cut it off.

    References:
      PPO, arXiv:1707.06347. Departs: none.
    """
    mask = _mask(m, side)
    critic = rows(required(side.values, "values", m)).astype(jnp.float32)
    reward = _token_rewards(m, values, mask, side)
    found, returns = gae(reward, critic, rows(mask), gamma=m.gamma, gae_lambda=m.gae_lambda)
    return dataclasses.replace(_whitened(m, found, mask, side, state), returns=returns)


def prefix_td(
    m: Method,
    values: Float[Array, "P G"],
    rewards: Float[Array, "P G"],
    side: Side,
    state: PyTree,
) -> Advantages:
    """Adds to each token the change of its prefix's value within the group's prefix tree.

    V(s) is the mean reward of the group's completions that begin with s; the change from before
    to after the token is divided as the advantages were (the method's SCALE).

    References:
      TEMPO, arXiv:2509.18314. Departs: a group of one gets 0 (the official code: nan).
    """
    mask = _mask(m, side)
    tokens = jnp.asarray(required(side.tokens, "tokens", m))
    valid = jnp.asarray(required(side.valid, "valid", m))
    same = (tokens[:, :, None] == tokens[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    after = jnp.cumprod(same, axis=3).astype(bool)  # the first t + 1 tokens agree
    before = jnp.concatenate([jnp.ones_like(after[..., :1]), after[..., :-1]], axis=3)
    both = (valid[:, :, None] & valid[:, None, :])[..., None]
    value_after = _prefix_value(after & both, rewards)
    value_before = _prefix_value(before & both, rewards)
    change = jnp.where(mask, value_after - value_before, 0.0)
    scale = chosen(SCALES, m.scale).function
    change = jax.vmap(lambda x: scale(m, x, rewards, side, state), in_axes=2, out_axes=2)(change)
    found = jnp.where(mask, values[..., None] + change, 0.0)
    return Advantages(values=rows(found), keep=valid, state=state)


def items(
    m: Method,
    values: Float[Array, "P G K"],
    rewards: Float[Array, "P G K"],
    side: Side,
    state: PyTree,
) -> Advantages:
    """Gives each token the advantage of its item; tokens of no item or beyond the last get 0.

    References:
      Rank-GRPO, arXiv:2510.20150. Departs: the optional terms for list length are left out.
    """
    if values.ndim != 3:
        raise ValueError(
            f"method {m.name!r}: post 'items' takes rewards of [P, G, K], one per item, got "
            f"{values.shape}"
        )
    mask = _mask(m, side)
    segments = jnp.asarray(required(side.segments, "segments", m))
    inside = mask & (segments >= 0) & (segments < values.shape[2])
    index = jnp.clip(segments, 0, values.shape[2] - 1)
    found = jnp.where(inside, jnp.take_along_axis(values, index, axis=2), 0.0)
    valid = jnp.asarray(required(side.valid, "valid", m))
    return Advantages(values=rows(found), keep=valid, state=state)


def _mask(m: Method, side: Side) -> Bool[Array, "P G T"]:
    """Trained tokens of valid rows."""
    mask = jnp.asarray(required(side.mask, "mask", m))
    return mask & jnp.asarray(required(side.valid, "valid", m))[..., None]


def _token_rewards(
    m: Method, values: Float[Array, "P G"], mask: Bool[Array, "P G T"], side: Side
) -> Float[Array, "B T"]:
    """The outcome at the last token, and the KL penalty at each, if the method has one."""
    left = jnp.cumsum(mask[..., ::-1], axis=2)[..., ::-1]
    reward = jnp.where(mask & (left == 1), values[..., None], 0.0)
    if penalised(m, "token_reward"):
        gap = jnp.where(mask, jnp.asarray(required(side.token_kl, "token_kl", m)), 0.0)
        reward = jnp.where(mask, reward - m.kl_coef * token_penalty(m, gap), 0.0)
    return rows(reward)


def _whitened(
    m: Method, values: Float[Array, "B T"], mask: Bool[Array, "P G T"], side: Side, state: PyTree
) -> Advantages:
    away, variance = batch_deviations(values, rows(mask))
    varied = variance > 0
    width = jnp.sqrt(jnp.where(varied, variance + m.post_eps, 1.0))
    valid = jnp.asarray(required(side.valid, "valid", m))
    return Advantages(values=jnp.where(varied, away / width, 0.0), keep=valid, state=state)


def _prefix_value(
    shares: Bool[Array, "P G G T"], rewards: Float[Array, "P G"]
) -> Float[Array, "P G T"]:
    """Mean reward of the completions that share each prefix, less the row's own reward."""
    # Of differences to the own reward: a prefix that nobody shares changes nothing, exactly.
    gaps = rewards[:, None, :] - rewards[:, :, None]
    total = jnp.sum(jnp.where(shares, gaps[..., None], 0.0), axis=2)
    return total / jnp.maximum(jnp.sum(shares, axis=2).astype(jnp.float32), 1.0)
