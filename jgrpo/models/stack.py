"""Layers one after another: stacked, by a scan over them, or each with arrays of its own.

Parameters are those of `decoder.py`; stacked, those of the blocks have a leading layer dimension.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def through(layer: Any, x: Array, layers: Any, *of_each: Any) -> tuple[Array, tuple[Any, ...]]:
    """Runs the layers one after another.

    Args:
      layer: maps the stream and (parameters, then what stands in `of_each`) of one layer to the
        stream and a tuple.
      x: the stream.
      layers: their parameters, stacked or in a tuple.
      of_each: what else each gets, likewise.

    Returns:
      The stream, and of each item of the tuples all layers' together, likewise.
    """
    if not isinstance(layers, tuple):
        return jax.lax.scan(layer, x, (layers, *of_each))
    said = []
    for one in zip(layers, *of_each, strict=True):
        x, items = rounded(layer(x, one))
        said.append(items)
    return x, tuple(zip(*said, strict=True))


def unstacked(params: PyTree) -> PyTree:
    """The parameters with a tuple of layers, which `prefill` and `extend` then loop over.

    A scan copies the weights of each layer out of the stack before it multiplies with them, on
    CPUs; beside few rows that takes as long as the products. Programs grow with the layers.
    """
    layers = params["layers"]
    number = jax.tree.leaves(layers)[0].shape[0]
    one = lambda i: jax.tree.map(lambda x: x[i], layers)  # noqa: E731
    return params | {"layers": tuple(map(one, range(number)))}


def stacked(params: PyTree) -> PyTree:
    """Undoes `unstacked`; parameters that are stacked stay as they are."""
    if not isinstance(params["layers"], tuple):
        return params
    return params | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *params["layers"])}


def rounded(tree: PyTree) -> PyTree:
    """The arrays in the precision that they are declared in, as the carry of a scan has.

    Where nothing forces it XLA leaves out roundings to bfloat16 (`xla_allow_excess_precision`), and
    a sampler of unstacked layers would differ from the learner by .04 nats.
    """

    def one(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        kind = jnp.finfo(x.dtype)
        return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)

    return jax.tree.map(one, tree)
