"""Low-rank adapters beside frozen matrices, and matrices kept in 8 or 4 bits (LoRA, QLoRA).

A matrix W with an adapter multiplies as W + scale A B, never added up: A takes its inputs to `rank`
numbers, B takes these to its outputs. Frozen weights are parameters as any (`architecture.
logical_axes`), with a `LowRank` in the place of each adapted matrix and a `Quantized` in that of
each that is kept in few bits; adapters are a tree of their own: `{"layers": {"q": {"a": ..., "b":
...}}}`. Rounding is that of qwix (extra `lora`).

Letters: L layers, r rank.
"""

import dataclasses
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jgrpo.models.architecture import INPUT_DIMS, Architecture, AxesTree, axis_sizes, logical_axes

Bits: TypeAlias = Literal["none", "int8", "nf4"]

BLOCK = 64
"""Most inputs that share a scale in nf4 (QLoRA, arXiv:2305.14314)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """A matrix in few bits.

    Attributes:
      array: a `qwix.QArray`: values, and scales that as many dims have.
    """

    array: Any

    def floats(self) -> Float[Array, "..."]:
        """The matrix that it stands for, float32."""
        return _qwix().dequantize(self.array)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """A matrix and what is added to its products; without `a` and `b`, nothing is.

    Attributes:
      base: the frozen matrix: floats, `Quantized`, or `Int8`.
      a: [*inputs, r].
      b: [r, *outputs].
      scale: factor of what is added.
    """

    # Any: trees of shardings and shapes with this structure are made from it.
    base: Any
    a: Any = None
    b: Any = None
    scale: float = dataclasses.field(metadata={"static": True})


def adapter_axes(arch: Architecture, matrices: Sequence[str]) -> AxesTree:
    """The table of the adapters, as `logical_axes` is that of parameters; it has an axis `rank`.

    Args:
      arch: the model.
      matrices: names of those of each layer that have adapters, such as `q`.
    """
    table = logical_axes(arch)["layers"]
    layers = {}
    for name in matrices:
        (layer, *dims), inputs = table[name], INPUT_DIMS[name]
        layers[name] = {"a": (layer, *dims[:inputs], "rank"), "b": (layer, "rank", *dims[inputs:])}
    return {"layers": layers}


def adapter_sizes(arch: Architecture, rank: int) -> dict[str, int]:
    """Length of each axis named by `adapter_axes`."""
    return axis_sizes(arch) | {"rank": rank}


def fresh_adapters(
    arch: Architecture, matrices: Sequence[str], rank: int, key: Key[Array, ""], dtype: str
) -> PyTree:
    """Adapters that add nothing yet: A uniform within 1 / sqrt(number of inputs), B zero.

    Args:
      arch: the model.
      matrices: as for `adapter_axes`.
      rank: numbers between A and B.
      key: draws A.
      dtype: of both.

    References:
      LoRA, arXiv:2106.09685; the interval is PEFT's (Kaiming's with a = sqrt(5)).
    """
    sizes, layers = adapter_sizes(arch, rank), {}
    axes = adapter_axes(arch, matrices)["layers"]
    for name, subkey in zip(axes, jax.random.split(key, len(axes)), strict=True):
        a, b = (tuple(sizes[axis] for axis in axes[name][part]) for part in "ab")
        bound = math.prod(a[1:-1]) ** -0.5
        drawn = jax.random.uniform(subkey, a, jnp.float32, -bound, bound)
        layers[name] = {"a": drawn.astype(dtype), "b": jnp.zeros(b, dtype)}
    return {"layers": layers}


def frozen(
    params: Mapping[str, Any], matrices: Sequence[str], *, scale: float, bits: Bits = "none"
) -> PyTree:
    """Parameters as they stay, with a place for the adapter of each of these matrices.

    Args:
      params: of a decoder, the blocks' with a leading layer dimension.
      matrices: as for `adapter_axes`.
      scale: factor of what adapters add, alpha / rank.
      bits: how the matrices of the blocks are kept, adapted or not.

    Raises:
      ModuleNotFoundError: if they are to be quantised and qwix is missing; names the extra.
    """
    layers = dict(params["layers"])
    if bits != "none":
        for name in layers.keys() & INPUT_DIMS.keys():
            layers[name] = Quantized(array=_quantized(name, layers[name], bits))
    layers |= {name: LowRank(base=layers[name], scale=scale) for name in matrices}
    return {**params, "layers": layers}


def joined(base: PyTree, trained: PyTree) -> PyTree:
    """The parameters of the model that frozen weights and adapters make together.

    Args:
      base: from `frozen`, stacked or unstacked; None: all weights are trained.
      trained: the adapters, laid out likewise, and whatever else is trained beside them; None: the
        frozen weights alone. Without frozen weights: all of the parameters.
    """
    if base is None:
        return trained
    if trained is None:
        return base

    def of_layer(layer: Mapping[str, Any], adapters: Mapping[str, Any]) -> dict[str, Any]:
        filled = {name: dataclasses.replace(layer[name], **ab) for name, ab in adapters.items()}
        return {**layer, **filled}

    layers, adapters = base["layers"], trained["layers"]
    if isinstance(layers, tuple):
        both = tuple(of_layer(*pair) for pair in zip(layers, adapters, strict=True))
    else:
        both = of_layer(layers, adapters)
    return {**base, **trained, "layers": both}


def merged(params: PyTree) -> PyTree:
    """Plain parameters that compute what these do: W + scale A B in place of each `LowRank`.

    Args:
      params: from `joined`, stacked.
    """

    def one(name: str, weight: Any) -> Any:
        base = floats(weight.base) if isinstance(weight, LowRank) else floats(weight)
        if not isinstance(weight, LowRank) or weight.a is None:
            return base
        a, b = (jnp.asarray(x, jnp.float32) for x in (weight.a, weight.b))
        layers, rank = a.shape[0], a.shape[-1]
        added = jnp.einsum("lir,lro->lio", a.reshape(layers, -1, rank), b.reshape(layers, rank, -1))
        return base.astype(jnp.float32) + weight.scale * added.reshape(base.shape)

    layers = {name: one(name, weight) for name, weight in params["layers"].items()}
    return {**params, "layers": layers}


def floats(weight: Any) -> Any:
    """A matrix in floats: those that few bits stand for, or those that it has."""
    return weight.floats() if isinstance(weight, Quantized) else weight


def _quantized(name: str, stacked: Any, bits: Bits) -> Any:
    """A matrix of every layer as `qwix.QArray`, rounded layer by layer."""
    quantize, inputs = _qwix().quantize, INPUT_DIMS[name]

    def one(matrix: Array) -> Any:
        matrix, each = matrix.astype(jnp.float32), range(inputs, matrix.ndim)
        if bits == "int8":
            return quantize(matrix, jnp.int8, channelwise_axes=tuple(each))
        last = inputs - 1
        tiles = {last: math.gcd(matrix.shape[last], BLOCK)}
        return quantize(matrix, "nf4", channelwise_axes=(*range(last), *each), tiled_axes=tiles)

    return jax.lax.map(one, jnp.asarray(stacked))


def _qwix() -> Any:
    try:
        return importlib.import_module("qwix")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "model.lora.quantize needs the package qwix: pip install 'jgrpo[lora]', or set "
            "model.lora.quantize: none"
        ) from error
