"""The rows of an embedding whose columns lie on several devices.

XLA would put the whole table together first, and its partitioner (jaxlib 0.10.2) aborts on such a
lookup inside the learner's map over replicas.

Letters: P, G, T, D as in `decoder.py`, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jgrpo.parallel.rules import LOGICAL_TO_MESH, free_data_axes, over_free_axes

_COLUMNS = LOGICAL_TO_MESH["embed"]


def is_split(table: Any, mesh: Mesh | None) -> bool:
    """Whether the columns of a table are on several devices of a mesh, by the rules.

    Args:
      table: an embedding; of one in few bits nobody knows.
      mesh: the devices; None: one.
    """
    if mesh is None or not isinstance(table, jax.Array) or table.ndim != 2:
        return False
    return mesh.shape[_COLUMNS] > 1 and table.shape[1] % mesh.shape[_COLUMNS] == 0


def rows_of_split(
    table: Float[Array, "V D"], tokens: Int[Array, "P G T"], mesh: Mesh, dtype: Any
) -> Float[Array, "P G T D"]:
    """Looks tokens up in a table whose columns are split (`is_split`).

    Each device looks its columns up for the tokens of all devices of the axis, and then each gets
    the rows of its own tokens (an all-to-all): what is exchanged has the size of the stream, not of
    the table, in both directions.

    Args:
      table: the embedding.
      tokens: ids; those outside the vocabulary are clipped.
      mesh: the devices, over whose data axes prompts are split where these divide them.
      dtype: of the result; the gradient of the table adds up in its own.
    """
    by_prompt = free_data_axes(mesh, tokens.shape[0])
    spec = PartitionSpec(by_prompt)

    def on_device(columns: Array, ids: Array) -> Array:
        of_all = jax.lax.all_gather(ids, _COLUMNS, tiled=True) if by_prompt else ids
        found = jnp.take(columns, of_all, axis=0, mode="clip").astype(dtype)
        if by_prompt:
            return jax.lax.all_to_all(found, _COLUMNS, split_axis=0, concat_axis=3, tiled=True)
        return jax.lax.all_gather(found, _COLUMNS, axis=3, tiled=True)

    return over_free_axes(mesh, on_device, (PartitionSpec(None, _COLUMNS), spec), spec)(
        table, tokens
    )
