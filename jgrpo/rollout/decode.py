"""The decode loop: one prefill a prompt, then steps that draw one token for every completion.

Letters: P prompts, G completions per prompt, W width of the completions' cache, T tokens drawn so
far, V vocabulary, D model width. The cache width is a shape, so it grows between compiled calls
(`widen`), not inside one; attention never looks at more than W positions.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32, Int, Key, PyTree

from jgrpo.models import decoder
from jgrpo.rollout.sample import Sampling, draw
from jgrpo.types import Prompts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Completions in the making.

    Attributes:
      prompt: keys and values of the prompts, stored once a prompt.
      own: keys and values of the completions, W positions of which `length - 1` are filled.
      keys: one key per completion.
      tokens: what has been drawn, and room up to W.
      logp: log-prob of each drawn token.
      length: tokens drawn so far, the same for all; what follows an EOS is ignored by the engine.
    """

    prompt: decoder.PromptCache
    own: decoder.KV
    keys: Key[Array, "P G"]
    tokens: Int[Array, "P G W"]
    logp: Float32[Array, "P G W"]
    length: Int[Array, ""]


def start(
    graphdef: nnx.GraphDef,
    params: PyTree,
    prompts: Prompts,
    keys: Key[Array, "P G"],
    *,
    width: int,
    sampling: Sampling,
) -> Decoding:
    """Encodes the prompts and draws the first token of every completion.

    Args:
      graphdef: structure of the model.
      params: its weights.
      prompts: what is asked.
      keys: one key per completion; token t is drawn with `fold_in(key, t)`.
      width: positions of the completions' cache to begin with.
      sampling: temperature and filters.
    """
    p, g = keys.shape
    hidden, cache = decoder.prefill(
        graphdef, params, jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask)
    )
    # The completions of a group share the distribution of their first token: one head row a prompt.
    logits = decoder.logits(params, hidden[:, -1])
    logits = jnp.broadcast_to(logits[:, None], (p, g, logits.shape[-1]))
    token, logp = _draw_each(logits, keys, jnp.zeros((), jnp.int32), sampling)
    empty = jnp.zeros((p, g, width))
    return Decoding(
        prompt=cache,
        own=decoder.empty_own(cache, g, width),
        keys=keys,
        tokens=empty.astype(jnp.int32).at[:, :, 0].set(token),
        logp=empty.astype(jnp.float32).at[:, :, 0].set(logp),
        length=jnp.ones((), jnp.int32),
    )


def advance(
    graphdef: nnx.GraphDef,
    params: PyTree,
    state: Decoding,
    *,
    num_tokens: Int[Array, ""] | int,
    sampling: Sampling,
) -> Decoding:
    """Draws `num_tokens` further tokens of every completion; W must have room for them."""

    def step(_, s: Decoding) -> Decoding:
        last = jax.lax.dynamic_slice_in_dim(s.tokens, s.length - 1, 1, axis=2)
        hidden, own = decoder.complete(
            graphdef, params, last, s.prompt, own=s.own, offset=s.length - 1
        )
        logits = decoder.logits(params, hidden[:, :, 0])
        token, logp = _draw_each(logits, s.keys, s.length, sampling)
        put = lambda whole, new: jax.lax.dynamic_update_slice_in_dim(  # noqa: E731
            whole, new[..., None].astype(whole.dtype), s.length, axis=2
        )
        return dataclasses.replace(
            s,
            own=own,
            tokens=put(s.tokens, token),
            logp=put(s.logp, logp),
            length=s.length + 1,
        )

    return jax.lax.fori_loop(0, num_tokens, step, state)


def widen(state: Decoding, width: int) -> Decoding:
    """Gives the completions' cache room for `width` positions; what is filled stays."""
    more = width - state.tokens.shape[-1]
    grow = lambda x, axis: jnp.pad(  # noqa: E731
        x, [(0, more if i == axis % x.ndim else 0) for i in range(x.ndim)]
    )
    own = decoder.KV(k=grow(state.own.k, -2), v=grow(state.own.v, -2))
    return dataclasses.replace(
        state, own=own, tokens=grow(state.tokens, -1), logp=grow(state.logp, -1)
    )


def _draw_each(
    logits: Float32[Array, "P G V"],
    keys: Key[Array, "P G"],
    position: Int[Array, ""],
    sampling: Sampling,
) -> tuple[Int[Array, "P G"], Float32[Array, "P G"]]:
    """Draws token number `position` of every completion with its own key."""
    flat_keys = keys.reshape(-1)
    uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, position)))(flat_keys)
    token, logp = draw(logits.reshape(-1, logits.shape[-1]), uniform, sampling)
    return token.astype(jnp.int32).reshape(keys.shape), logp.reshape(keys.shape)
