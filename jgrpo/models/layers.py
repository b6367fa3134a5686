"""The arithmetic inside a block: RMS norm, rotary positions, attention with a shared prefix.

Letters: P prompts, G completions per prompt, Tq query positions, Tk own key positions, Lp prompt
positions, H query heads, K key/value heads, R = H / K, E head width. Parameters live in
`decoder.py`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jgrpo.models.architecture import Architecture
from jgrpo.models.int8 import Int8
from jgrpo.models.lora import LowRank, Quantized
from jgrpo.types import AnyArray

# Finite, so that a row with no visible key (a prompt of padding alone) yields numbers, not NaN.
_MASKED = -1e30


def rms_norm(
    x: Float[Array, "*B N"], weight: Float[AnyArray, " N"], eps: float
) -> Float[Array, "*B N"]:
    """Scales the last dimension to unit root mean square, then by `weight`; float32 inside.

    Args:
      x: activations, any float dtype (kept).
      weight: learned scale.
      eps: added to the mean square.
    """
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    scale = jnp.asarray(weight, jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (x32 * inverse * scale).astype(x.dtype)


def rope_frequencies(arch: Architecture) -> Float[np.ndarray, " half"]:
    """Rotary frequencies in radians per position, highest first, with the model's scaling.

    References:
      RoPE, arXiv:2104.09864; "llama3" scaling, arXiv:2407.21783. Departs: none.
    """
    exponent = np.arange(0, arch.head_width, 2, dtype=np.float64) / arch.head_width
    frequency = arch.rope_theta**-exponent
    scaling = arch.rope_scaling
    if scaling is None:
        return frequency.astype(np.float32)
    if scaling.kind == "linear":
        return (frequency / scaling.factor).astype(np.float32)
    turns = scaling.original_max_positions * frequency / (2 * np.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (frequency * (keep + (1.0 - keep) / scaling.factor)).astype(np.float32)


def rope_angles(
    positions: Int[Array, "*B"], arch: Architecture
) -> tuple[Float[Array, "*B half"], Float[Array, "*B half"]]:
    """Cosine and sine of every rotary angle at the given positions (counted from 0), float32."""
    frequency = rope_frequencies(arch).reshape((1,) * positions.ndim + (-1,))
    angle = positions.astype(jnp.float32)[..., None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rope(
    x: Float[Array, "P G T N E"],
    cos: Float[Array, "#P #G T half"],
    sin: Float[Array, "#P #G T half"],
) -> Float[Array, "P G T N E"]:
    """Rotates the pairs (x_i, x_{i + E/2}) of every head; float32 inside, the dtype of `x` outside.

    Args:
      x: queries or keys; N heads.
      cos: from `rope_angles`.
      sin: from `rope_angles`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def dense(
    x: Float[Array, "..."],
    weight: Float[Array, "..."] | Int8 | Quantized | LowRank,
    inputs: int = 1,
) -> Float[Array, "..."]:
    """Multiplies the last dims by a matrix, as one two-dimensional product, in the dtype of `x`.

    With several leading dims in the product, XLA's CPU backend takes four times as long for the
    gradient of the weight, because it contracts over all of them.

    Args:
      x: what is multiplied.
      weight: its first dims are the last of `x`; with `Int8` one scale for each of the others.
        With `LowRank` what the adapter adds comes from two narrow products of its own.
      inputs: how many dims are summed over.
    """
    if isinstance(weight, LowRank):
        product = dense(x, weight.base, inputs)
        if weight.a is None:
            return product
        return product + weight.scale * dense(dense(x, weight.a, inputs), weight.b)
    if isinstance(weight, Quantized):
        # Computed again by a backward pass, which would keep the floats of every layer otherwise.
        of_floats = lambda x, weight: dense(x, weight.floats().astype(x.dtype), inputs)  # noqa: E731
        return jax.checkpoint(of_floats)(x, weight)
    matrix = weight.values if isinstance(weight, Int8) else weight
    shape = (*x.shape[: x.ndim - inputs], *matrix.shape[inputs:])
    width = math.prod(matrix.shape[:inputs])
    flat_x, flat = x.reshape(-1, width), matrix.reshape(width, -1)
    if not isinstance(weight, Int8):
        return (flat_x @ flat).reshape(shape)
    product = jnp.matmul(flat_x, flat.astype(x.dtype), preferred_element_type=jnp.float32)
    return (product * weight.scale.reshape(1, -1)).astype(x.dtype).reshape(shape)


def in_dtype(weight: Any, dtype: str) -> Any:
    """A weight as it is multiplied: in floats of a precision; what has fewer bits stays so."""
    if isinstance(weight, LowRank):
        parts = {"base": weight.base, "a": weight.a, "b": weight.b}
        cast = {name: None if x is None else in_dtype(x, dtype) for name, x in parts.items()}
        return dataclasses.replace(weight, **cast)
    return weight if isinstance(weight, Int8 | Quantized) else jnp.asarray(weight, dtype)


def attend(
    q: Float[Array, "P G Tq H E"],
    own_k: Float[Array, "P G K Tk E"] | Float[Array, "P G K E Tk"],
    own_v: Float[Array, "P G K Tk E"],
    own_mask: Bool[Array, "Tq Tk"] | Bool[Array, "P 1 Tq Tk"] | Bool[Array, "P G Tq Tk"],
    prefix: tuple[Float[Array, "P K Lp E"], Float[Array, "P K Lp E"], Bool[Array, "P Lp"]]
    | None = None,
    *,
    positions_last: bool = False,
) -> Float[Array, "P G Tq H E"]:
    """Softmax attention over each row's own keys and the keys its whole group shares.

    One softmax over both sets, with neither set copied per query head, and the shared set not
    copied per completion: the G completions of a prompt are extra rows of one matrix product.
    The two halves meet through a common maximum and a summed denominator. Logits, exponentials
    and sums are float32.

    Args:
      q: queries.
      own_k: keys of the row's own tokens, heads before positions as the caches hold them.
      own_v: values of the row's own tokens.
      own_mask: True where a query sees an own key.
      prefix: keys, values and mask (True at real tokens) of the prompt, all seen; or None.
      positions_last: `own_k` comes as `[P, G, K, E, Tk]`, the layout of `LayerRings`.

    Returns:
      The mixed values in the dtype of `q`. A query that sees no key at all gets finite numbers
      without meaning.

    References:
      Hydragen, arXiv:2402.05099 (the decomposition). Departs: one maximum instead of two
      normalised outputs weighted by their log-sum-exp.
    """
    P, G, Tq, H, E = q.shape
    K = own_k.shape[2]
    R = H // K
    # Heads before positions and leading dims merged: plain batched matrix products.
    q_PGKTRE = (q * E**-0.5).reshape(P, G, Tq, K, R, E).transpose(0, 1, 3, 2, 4, 5)
    own_mask = own_mask.reshape((1,) * (4 - own_mask.ndim) + own_mask.shape)
    visible = own_mask[:, :, None, :, None]
    scores = _scores(q_PGKTRE, own_k, "nes" if positions_last else "nse")
    logits = jnp.where(visible, scores, _MASKED)
    peak = logits.max(axis=-1)
    if prefix is None:
        mixed, total = _weigh(logits, peak, own_v)
    else:
        prefix_k, prefix_v, prefix_mask = prefix
        seen = prefix_mask[:, None, None, None, None]
        shared = jnp.where(seen, _scores(q_PGKTRE.swapaxes(1, 2), prefix_k), _MASKED)
        peak = jnp.maximum(peak, shared.max(axis=-1).swapaxes(1, 2))
        mixed, total = _weigh(logits, peak, own_v)
        of_prompt, prompt_total = _weigh(shared, peak.swapaxes(1, 2), prefix_v)
        mixed, total = mixed + of_prompt.swapaxes(1, 2), total + prompt_total.swapaxes(1, 2)
    mixed = (mixed / total[..., None]).astype(q.dtype)
    return mixed.transpose(0, 1, 3, 2, 4, 5).reshape(P, G, Tq, H, E)


def _scores(
    q: Float[Array, "... E"], k: Float[Array, "*N S E"] | Float[Array, "*N E S"], dims: str = "nse"
) -> Float[Array, "... S"]:
    """Products of queries with the keys of their leading indices; in float32.

    The leading dims of the keys lead the queries too; all others are queries of one key set.
    """
    keys = k.reshape(-1, *k.shape[-2:])
    queries = q.reshape(keys.shape[0], -1, q.shape[-1])
    scores = jnp.einsum(f"nme,{dims}->nms", queries, keys, preferred_element_type=jnp.float32)
    return scores.reshape(*q.shape[:-1], -1)


def _weigh(
    logits: Float[Array, "*M S"], peak: Float[Array, "*M"], v: Float[Array, "*N S E"]
) -> tuple[Float[Array, "*M E"], Float[Array, "*M"]]:
    """Values summed with weights exp(logits - peak), and the sum of the weights.

    Multiplied in the dtype of the values, added up in float32. The quotient of the two does not
    depend on the peak, so that no gradient flows through it.
    """
    weight = jnp.exp(logits - jax.lax.stop_gradient(peak)[..., None])
    values = v.reshape(-1, *v.shape[-2:])
    flat = weight.astype(v.dtype).reshape(values.shape[0], -1, v.shape[-2])
    mixed = jnp.einsum("nms,nse->nme", flat, values, preferred_element_type=jnp.float32)
    return mixed.reshape(*peak.shape, -1), weight.sum(axis=-1)
