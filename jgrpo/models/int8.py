"""Arrays kept as 8-bit integers with a float32 scale per row or column, for sampling.

Symmetric, by the largest magnitude: value = integer * scale, scale = max |value| / 127. Matrices
have one scale per output, caches of keys and values one per token and head. Nothing here has a
gradient that means anything; the learner never sees it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jgrpo.models.architecture import EXPERTS, INPUT_DIMS
from jgrpo.models.lora import LowRank, floats

Precision: TypeAlias = Literal["model", "int8"]

_LARGEST = 127.0
# Looked up or multiplied row by row: each row of the vocabulary is an output.
_BY_ROW = ("embed", "lm_head")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8:
    """An array of 8-bit integers and what they are to be multiplied by.

    Attributes:
      values: int8, the shape of the array.
      scale: float32, the shape without the dims that share a scale.
    """

    # Any: trees of shardings and shapes with this structure are made from it.
    values: Any
    scale: Any


def quantize(x: Float[Array, "..."], shared: tuple[int, ...]) -> Int8:
    """Rounds to the nearest of 255 evenly spaced values around 0.

    Args:
      x: any float dtype.
      shared: dims along which elements share a scale.

    Returns:
      Integers off by at most half a scale; zeros stay zeros.
    """
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(axis=shared, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / _LARGEST
    return Int8(values=jnp.round(x / scale).astype(jnp.int8), scale=jnp.squeeze(scale, axis=shared))


def last_dim(x: Array | Int8, dtype: Any) -> Float[Array, "..."]:
    """The array in floats, if those along its last dim share a scale; floats as they are."""
    if not isinstance(x, Int8):
        return x
    return (x.values.astype(jnp.float32) * x.scale[..., None]).astype(dtype)


def quantize_params(params: Mapping[str, Any]) -> PyTree:
    """The parameters with every matrix as 8-bit integers; norms, biases and adapters as they are.

    Args:
      params: of a decoder, the blocks' with a leading layer dimension.
    """

    def of_layers(name: str, leaf: Any) -> Any:
        if name in EXPERTS:
            return quantize(leaf, (2,))
        if name not in INPUT_DIMS:
            return leaf
        if isinstance(leaf, LowRank):
            return dataclasses.replace(leaf, base=of_layers(name, leaf.base))
        return quantize(floats(leaf), tuple(range(1, 1 + INPUT_DIMS[name])))

    layers = {name: of_layers(name, leaf) for name, leaf in params["layers"].items()}
    others = {
        name: quantize(leaf, (1,)) if name in _BY_ROW else leaf
        for name, leaf in params.items()
        if name != "layers"
    }
    return {**others, "layers": layers}
