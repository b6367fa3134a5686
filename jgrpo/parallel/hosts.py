"""What the processes of one run tell each other, and arrays that lie on the devices of all.

Every process runs the same program on the same data. What only one of them knows (a file, a signal,
a score) is told to all before anything is decided by it, so that all decide alike; whoever calls
one of these functions, all must, in the same order. A process that is alone just goes on.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import PyTree

from jgrpo.parallel.measuring import gather

_ROOM = 1024  # bytes of a message that are told at once
_T = TypeVar("_T")


def several() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def count() -> int:
    """Number of processes."""
    return jax.process_count() if several() else 1


def index() -> int:
    """Number of this process, from 0."""
    return jax.process_index() if several() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and shows: alone, or the first of several."""
    return index() == 0


def speaker() -> str:
    """Which of several processes speaks, before what it says; empty if it is alone."""
    return f"process {index()}: " if several() else ""


def exchange(message: str) -> list[str]:
    """What every process has to say, in their order; of any length."""
    if not several():
        return [message]
    text = json.dumps(message).encode()  # no zero bytes, and begins with a quotation mark
    said = gather(text if len(text) <= _ROOM else str(len(text)).encode(), _ROOM)
    lengths = [int(part) for part in said if not part.startswith(b'"')]
    if lengths:
        said = gather(text, 1 << (max(lengths) - 1).bit_length())
    return [json.loads(part) for part in said]


def check_alike(said: Sequence[str], name: str) -> None:
    """Refuses processes of which one was started otherwise than the first.

    Args:
      said: what each was started with, in words.
      name: of what has to be the same.

    Raises:
      ValueError: naming one that differs.
    """
    for process, other in enumerate(said):
        if other != said[0]:
            raise ValueError(
                f"all processes must be started with the same {name}: process 0 has {said[0]}, "
                f"process {process} has {other}"
            )


def agreed(message: str) -> str:
    """What the first process that has something to say says; empty if none has."""
    return next(filter(None, exchange(message)), "")


def from_first(find: Callable[[], _T]) -> _T:
    """What the first process finds, as JSON makes it, in all; the others do not look.

    Raises:
      ValueError, OSError: what it raises there, in all.
    """
    if not several():
        return find()
    answer: dict[str, Any] = {}
    problem = None
    if is_first():
        try:
            answer = {"found": find()}
        except (ValueError, OSError) as error:
            problem = error
            answer = {"error": str(error), "is_value": isinstance(error, ValueError)}
    answer = json.loads(exchange(json.dumps(answer))[0])
    if problem is not None:
        raise problem
    if "error" in answer:
        raise (ValueError if answer["is_value"] else OSError)(answer["error"])
    return answer["found"]


def on_first(do: Callable[[], object]) -> None:
    """Does something in the first process alone; returns in all when it is done.

    Raises:
      ValueError, OSError: what it raises there, in all.
    """

    def done() -> None:
        do()

    from_first(done)


def place(tree: PyTree, shardings: PyTree[Sharding]) -> PyTree[jax.Array]:
    """What `jax.device_put` returns; of several processes, each puts the parts of its devices.

    Args:
      tree: arrays, the same in all processes.
      shardings: one for all of them, or as many in the same structure.
    """
    if not several():
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda x: _placed(x, shardings), tree)
    return jax.tree.map(_placed, tree, shardings)


def _placed(x: Any, sharding: Sharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index], dtype=x.dtype)


def fetch(tree: PyTree) -> PyTree:
    """What `jax.device_get` returns; of several processes, each gets the parts of all."""
    return jax.device_get(jax.tree.map(_whole, tree) if several() else tree)


def at_hand(tree: PyTree) -> PyTree:
    """Arrays with which each process can compute alone: copies, if it shares them with others."""
    return fetch(tree) if several() else tree


def _whole(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    return multihost_utils.process_allgather(x, tiled=True)
