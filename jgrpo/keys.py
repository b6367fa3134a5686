"""Randomness by name: every key is derived from (seed, step, name, ...), none is stored.

So a run that is stopped and continued draws the same numbers, and what one stage draws does not
depend on what another has drawn before it.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jgrpo.types import AnyArray


def root_key(seed: int) -> Key[Array, ""]:
    """Returns the key from which all randomness of a run with this seed is derived."""
    return jax.random.key(seed)


def named_key(key: Key[Array, ""], *path: int | str) -> Key[Array, ""]:
    """Folds a path of step numbers and stage names into a key.

    Args:
      key: the root, or any key derived from it.
      path: for instance `(step, "rollout")`; strings count by their CRC-32.

    Returns:
      A key that is the same for the same path, and independent for different ones.
    """
    for part in path:
        word = zlib.crc32(part.encode()) if isinstance(part, str) else part
        key = jax.random.fold_in(key, word)
    return key


def sequence_keys(
    key: Key[Array, ""], uid: Int[AnyArray, " P"], group_size: int
) -> Key[Array, "P {group_size}"]:
    """Returns one key per completion, a function of the prompt's uid and its place in the group.

    The row, batch or device that a completion is drawn on does not enter.

    Args:
      key: the key of this rollout.
      uid: numbers of the prompts in the run's order.
      group_size: completions per prompt.
    """
    members = jnp.arange(group_size)

    def group(prompt_uid: Int[Array, ""]) -> Key[Array, " G"]:
        prompt_key = jax.random.fold_in(key, prompt_uid)
        return jax.vmap(lambda g: jax.random.fold_in(prompt_key, g))(members)

    return jax.vmap(group)(jnp.asarray(uid))
