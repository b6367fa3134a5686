"""Log-probs of given tokens from hidden states, without ever holding all logits at once.

Letters: N tokens, V vocabulary, D model width. Everything leaves in float32, in nats.
"""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jgrpo.types import AnyArray

Entropy: TypeAlias = Literal["none", "value", "gradient"]


def token_logps(
    hidden: Float[Array, "N D"],
    head: Float[AnyArray, "V D"],
    targets: Int[Array, " N"],
    *,
    temperature: float,
    chunk_tokens: int,
    entropy: Entropy,
) -> tuple[Float[Array, " N"], Float[Array, " N"] | None]:
    """Log-prob of each target under softmax(hidden @ head.T / temperature), full vocabulary.

    At most `chunk_tokens` rows of logits exist at once, in the backward pass too: each chunk is
    recomputed there. If one chunk suffices nothing is recomputed.

    Args:
      hidden: hidden states after the last norm; the matrix product runs in their dtype and adds
        up in float32.
      head: LM head, any float dtype.
      targets: token ids.
      temperature: of the sampler; 0 (greedy) means 1.
      chunk_tokens: rows of logits held at once.
      entropy: also return that of the tempered distribution, as a plain value or differentiable.

    Returns:
      Log-probs, and entropies or None.
    """
    inverse_temperature = 1.0 / temperature if temperature else 1.0

    def direct(hidden: Array, targets: Array) -> tuple[Array, Array | None]:
        # Cast here, not before the loop: the gradient of the head then adds up over the chunks
        # in the head's own dtype.
        logits_NV = inverse_temperature * jnp.einsum(
            "nd,vd->nv",
            hidden,
            jnp.asarray(head, hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        # All log-probs at once: the target's and the entropy's then lose nothing to cancellation
        # where one token holds nearly all the mass.
        logp_NV = jax.nn.log_softmax(logits_NV, axis=-1)
        # A comparison instead of a gather: its transpose is elementwise, not a scatter.
        hit_NV = jnp.arange(logits_NV.shape[1])[None] == targets[:, None]
        logp_N = jnp.where(hit_NV, logp_NV, 0.0).sum(axis=-1)
        if entropy == "none":
            return logp_N, None
        if entropy == "value":
            logp_NV = jax.lax.stop_gradient(logp_NV)
        return logp_N, -(jnp.exp(logp_NV) * logp_NV).sum(axis=-1)

    N = hidden.shape[0]
    if chunk_tokens >= N:
        return direct(hidden, targets)
    num_chunks = -(-N // chunk_tokens)
    padding = num_chunks * chunk_tokens - N
    hidden_CND = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(num_chunks, chunk_tokens, -1)
    targets_CN = jnp.pad(targets, (0, padding)).reshape(num_chunks, chunk_tokens)
    logp, spread = jax.lax.map(
        lambda chunk: jax.checkpoint(direct)(*chunk), (hidden_CND, targets_CN)
    )
    return logp.reshape(-1)[:N], None if spread is None else spread.reshape(-1)[:N]
