"""Randomness by name: every key is derived from (seed, step, name, ...), none is stored.

So a run that is stopped and continued draws the same numbers, and what one stage draws does not
depend on what another has drawn before it.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32
from numpy import ndarray

from jgrpo.buckets import power_of_two
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
    key: Key[Array, ""],
    uid: Int[AnyArray, " P"],
    group_size: int,
    first: Int[ndarray, " P"] | None = None,
) -> Key[Array, "P {group_size}"]:
    """Returns one key per completion, a function of the prompt's uid and its place in the group.

    The row, batch or device that a completion is drawn on does not enter.

    Args:
      key: the key of this rollout.
      uid: numbers of the prompts in the run's order.
      group_size: completions per prompt.
      first: place of each prompt's first completion; None: 0.
    """
    begin = np.zeros(len(uid), np.int32) if first is None else first
    places = np.asarray(begin)[:, None] + np.arange(group_size)
    uids = np.broadcast_to(np.asarray(uid)[:, None], places.shape)
    # Few shapes are compiled: what is asked for differs from round to round.
    room = power_of_two(places.size)
    padded = (np.resize(x.astype(np.uint32), room) for x in (uids, places))
    words = np.asarray(_words_of_keys(key, *padded))[: places.size].reshape(*places.shape, -1)
    return jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(key))


@jax.jit
def _words_of_keys(
    key: Key[Array, ""], uid: UInt32[Array, " N"], place: UInt32[Array, " N"]
) -> UInt32[Array, "N words"]:
    def of_one(uid: UInt32[Array, ""], place: UInt32[Array, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(key, uid), place)

    return jax.random.key_data(jax.vmap(of_one)(uid, place))
