"""How a batch is cut into microbatches, and how what they give is put together again.

Letters: P prompts, G completions per prompt, N microbatches.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey
from jaxtyping import Array, Float32, PyTree

from jgrpo.types import Batch

Metrics: TypeAlias = dict[str, Float32[Array, ""]]


def split_microbatches(
    data: PyTree, completions: int, shards: int = 1
) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """Cuts a batch into equal parts along a new leading dim.

    Whole groups stay together while they fit a device; a smaller part takes some completions of a
    group, and the prompt with it. Rows are dealt out in turn, so that on a mesh each part has rows
    of every device.

    Args:
      data: a batch, and further arrays [P, G, ...].
      completions: completions per part and device; 0: all in one.
      shards: devices that each part is split over.

    Returns:
      The arrays of all parts, bare because no record has their leading dim, and the function that
      puts the arrays of one part together again.

    Raises:
      ValueError: if the completions cannot be cut like that.
    """
    p, g = jax.tree.leaves(data, is_leaf=lambda x: isinstance(x, Batch))[0].tokens.shape[:2]
    size = completions or -(-p // shards) * g
    of_group = min(size, g)
    rows = max(1, size // g) * shards if completions else p
    if g % of_group or (size > g and size % g) or (p * g) % (rows * of_group):
        raise ValueError(
            f"optim.microbatch_completions = {completions} does not divide {p} prompts x {g} "
            f"completions per device: use a divisor of {g}, or {g} x a divisor of {p}"
        )

    def cut(x: Array, per_prompt: bool) -> Array:
        if per_prompt:
            x = jnp.repeat(x, g // of_group, axis=0)
        else:
            x = x.reshape(p * (g // of_group), of_group, *x.shape[2:])
        return jnp.swapaxes(x.reshape(rows, -1, *x.shape[1:]), 0, 1)

    leaves, structure = jax.tree.flatten_with_path(data)
    parts = [cut(x, per_prompt=GetAttrKey("prompts") in path) for path, x in leaves]
    return parts, partial(jax.tree.unflatten, structure)


def merge_microbatches(parts: Array, num_prompts: int) -> Array:
    """Undoes `split_microbatches` for one array [N, rows, completions, ...] -> [P, G, ...]."""
    rows = jnp.swapaxes(parts, 0, 1)
    return rows.reshape(num_prompts, -1, *parts.shape[3:])


def accumulated(
    gradient: Callable[[PyTree, list[Array]], tuple[PyTree, Metrics]],
    params: PyTree,
    parts: list[Array],
    placed: Callable[[PyTree], PyTree],
) -> tuple[PyTree, Metrics]:
    """Gradients, in float32, and metrics of all parts together, one part after another.

    Args:
      gradient: of one part, with its metrics.
      params: what the gradient is taken with respect to.
      parts: from `split_microbatches`.
      placed: lays a gradient out over devices: each keeps the sums of its own weights.
    """

    def add(total: tuple[PyTree, Metrics], part: list[Array]) -> tuple[PyTree, None]:
        grads, metrics = gradient(params, part)
        grads = jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total[0], grads)
        return (placed(grads), combine(total[1], metrics)), None

    _, metric_shapes = jax.eval_shape(gradient, params, [x[0] for x in parts])
    zeros = (
        placed(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)),
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metric_shapes),
    )
    return jax.lax.scan(add, zeros, parts)[0]


def combine(a: Metrics, b: Metrics) -> Metrics:
    """Metrics of two parts of a batch together: sums, and maxima of `_max`."""
    return {
        name: jnp.maximum(a[name], b[name]) if name.endswith("_max") else a[name] + b[name]
        for name in a
    }


def combine_replicas(metrics: Metrics) -> Metrics:
    """The same over all replicas; only inside a `shard_map` over them."""
    return {
        name: (jax.lax.pmax if name.endswith("_max") else jax.lax.psum)(value, "replica")
        for name, value in metrics.items()
    }
