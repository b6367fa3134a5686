"""Log-probs of given tokens from hidden states, without ever holding all logits at once.

Letters: N tokens, C tokens of a chunk, V vocabulary, D model width; chunks of tokens that are split
over devices are [S, C], of C tokens of each. Everything leaves in float32, in nats.
"""

from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jgrpo.parallel.rules import LOGICAL_TO_MESH, free_data_size, split_over
from jgrpo.types import AnyArray

_LOGITS_AT_ONCE = 2**27
_SPLIT = LOGICAL_TO_MESH["vocab"], LOGICAL_TO_MESH["model"]

Entropy: TypeAlias = Literal["none", "value", "gradient"]


class _Settings(NamedTuple):
    """What does not change the shapes of arguments: hashable, so that it is compiled in."""

    inverse_temperature: float
    num_chunks: int
    entropy: Entropy
    mesh: Mesh | None
    devices: int

    @property
    def splits_vocabulary(self) -> bool:
        """Whether the rows of the head may be on several devices."""
        return self.mesh is not None and self.mesh.shape["tensor"] > 1


class _Law(NamedTuple):
    """What the backward pass must know of each token's law besides its logits.

    Peak and log-sum apart: their sum would round the log-sum away beside a large logit.
    """

    peak: Array
    log_total: Array
    entropy: Array | None


def token_logps(
    hidden: Float[Array, "N D"],
    head: Float[AnyArray, "V D"],
    targets: Int[Array, " N"],
    *,
    temperature: float,
    chunk_tokens: int,
    entropy: Entropy,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, " N"], Float[Array, " N"] | None]:
    """Log-prob of each target under softmax(hidden @ head.T / temperature), full vocabulary.

    At most `chunk_tokens` rows of logits exist at once on a device, in the backward pass too, which
    computes them again. (Of a single chunk the compiler keeps the logits instead.) On a mesh each
    chunk has rows of every device; the head is put together once, and each device adds up its own
    part of the head's gradient, so that nothing is exchanged for every chunk.

    Args:
      hidden: hidden states after the last norm; the matrix products run in their dtype and add
        up in float32.
      head: LM head, any float dtype.
      targets: token ids.
      temperature: of the sampler; 0 (greedy) means 1.
      chunk_tokens: rows of logits that a device holds at once.
      entropy: also return that of the tempered distribution, as a plain value or differentiable.
      mesh: devices over whose free data axes tokens are split, consecutive ones on each, if they
        divide N; `tensor` may split the rows of the head, `fsdp` its columns. None: one.

    Returns:
      Log-probs, and entropies or None.
    """
    devices = 1 if mesh is None else free_data_size(mesh)
    devices = 1 if hidden.shape[0] % devices else devices
    num_chunks = max(1, -(-hidden.shape[0] // (devices * chunk_tokens)))
    devices = devices if num_chunks > 1 else 1
    inverse_temperature = 1.0 / temperature if temperature else 1.0
    settings = _Settings(inverse_temperature, num_chunks, entropy, mesh, devices)
    return _logps(settings, hidden, jnp.asarray(head), targets)


def chunk_tokens(wanted: int, vocabulary: int) -> int:
    """Tokens of a chunk: those wanted, or for 0 as many as make 512 MiB of logits."""
    return wanted or max(1, _LOGITS_AT_ONCE // vocabulary)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logps(
    settings: _Settings, hidden: Array, head: Array, targets: Array
) -> tuple[Array, Array | None]:
    logp, law = _forward(settings, hidden, head, targets)
    return logp, law.entropy


def _forward(settings: _Settings, hidden: Array, head: Array, targets: Array) -> tuple[Array, _Law]:
    head = _together(settings, head, hidden.dtype)

    def one(chunk: tuple[Array, Array]) -> tuple[Array, _Law]:
        hidden, targets = chunk
        shifted, peak = _shifted(settings, hidden, head)
        mass = jnp.exp(shifted)
        total = mass.sum(axis=-1)
        log_total = jnp.log(total)
        # The target's and the entropy's terms have one sign each, so that nothing cancels where
        # one token holds nearly all the mass.
        logp = _at_targets(settings, shifted, targets) - log_total
        if settings.entropy == "none":
            return logp, _Law(peak, log_total, None)
        spread = log_total - (mass * shifted).sum(axis=-1) / total
        return logp, _Law(peak, log_total, spread)

    return _over_chunks(settings, one, (hidden, targets))


def _at_targets(settings: _Settings, logits: Array, targets: Array) -> Array:
    if settings.splits_vocabulary:
        # The partitioner of jaxlib 0.10.2 aborts on a lookup along a split dim in a shard_map.
        return jnp.where(_hit(targets, logits.shape[-1]), logits, 0.0).sum(axis=-1)
    return jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]


def _hit(targets: Array, vocabulary: int) -> Array:
    """True at the target of each row; elementwise, in one pass with what is done with it."""
    ids = jnp.arange(vocabulary).reshape((1,) * targets.ndim + (-1,))
    return ids == targets[..., None]


def _keep(
    settings: _Settings, hidden: Array, head: Array, targets: Array
) -> tuple[tuple[Array, Array | None], Any]:
    logp, law = _forward(settings, hidden, head, targets)
    return (logp, law.entropy), (hidden, head, targets, law)


def _backward(settings: _Settings, kept: Any, slopes: tuple[Array, Array | None]) -> Any:
    hidden, split_head, targets, law = kept
    head = _together(settings, split_head, hidden.dtype)

    def one(total: Array, chunk: Any) -> tuple[Array, Array]:
        hidden, targets, law, (of_logp, of_entropy) = chunk
        shifted, _ = _shifted(settings, hidden, head, law.peak)
        logp = shifted - law.log_total[..., None]
        # A comparison instead of a scatter.
        hit = _hit(targets, head.shape[0])
        slope = jnp.where(hit, of_logp[..., None], 0.0) - of_logp[..., None] * jnp.exp(logp)
        if settings.entropy == "gradient":
            slope -= of_entropy[..., None] * jnp.exp(logp) * (logp + law.entropy[..., None])
        slope = (settings.inverse_temperature * slope).astype(hidden.dtype)
        to_hidden = slope @ jnp.asarray(head, hidden.dtype)
        product = "scv,scd->svd" if settings.devices > 1 else "...cv,...cd->vd"
        to_head = jnp.einsum(product, slope, hidden, preferred_element_type=jnp.float32)
        return total + to_head, to_hidden

    if settings.num_chunks == 1:
        to_head, to_hidden = one(jnp.zeros(()), (hidden, targets, law, slopes))
        return to_hidden, to_head.astype(split_head.dtype), None
    parts = (settings.devices,) if settings.devices > 1 else ()
    zeros = jnp.zeros((*parts, *head.shape), jnp.float32)
    to_head, to_hidden = jax.lax.scan(one, zeros, _cut(settings, (hidden, targets, law, slopes)))
    if parts:
        to_head = split_over(to_head.sum(0), settings.mesh, *_SPLIT)
    return _uncut(to_hidden, hidden.shape[0]), to_head.astype(split_head.dtype), None


_logps.defvjp(_keep, _backward)


def _together(settings: _Settings, head: Array, dtype: Any) -> Array:
    """The head with all its columns, where several chunks need it on several devices."""
    if settings.devices == 1:
        return head
    return split_over(jnp.asarray(head, dtype), settings.mesh, _SPLIT[0])


def _shifted(
    settings: _Settings, hidden: Array, head: Array, peak: Array | None = None
) -> tuple[Array, Array]:
    """Tempered logits less their row's peak, [C, V], and the peaks."""
    # Cast here, not before the loop, so that no cast copy of the head outlives a chunk.
    weight = jnp.asarray(head, hidden.dtype)
    logits = jnp.einsum("...d,vd->...v", hidden, weight, preferred_element_type=jnp.float32)
    logits = settings.inverse_temperature * logits
    peak = logits.max(axis=-1) if peak is None else peak
    return logits - peak[..., None], peak


def _over_chunks(settings: _Settings, function: Any, arrays: Any) -> Any:
    """Maps over chunks of rows; one chunk runs without a loop, and without a copy."""
    if settings.num_chunks == 1:
        return function(arrays)
    count = jax.tree.leaves(arrays)[0].shape[0]
    return jax.tree.map(lambda x: _uncut(x, count), jax.lax.map(function, _cut(settings, arrays)))


def _cut(settings: _Settings, arrays: Any) -> Any:
    """Deals the rows [N, ...] of each device out into [chunks, S, C, ...], filled with zeros."""

    def one(x: Array) -> Array:
        chunks = settings.num_chunks
        x = x.reshape(settings.devices, -1, *x.shape[1:])
        padding = -x.shape[1] % chunks
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)) if padding else x
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunks, *x.shape[2:]), 2, 0)

    return jax.tree.map(one, arrays)


def _uncut(x: Array, count: int) -> Array:
    """Undoes `_cut` for one array."""
    rows = jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1, *x.shape[3:])
    return rows[:, : count // x.shape[1]].reshape(count, *x.shape[3:])
