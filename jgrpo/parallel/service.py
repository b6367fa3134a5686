"""jax's coordination service: how processes hear of each other without using a device.

`jax.distributed` starts it and does not hand it out.
"""

from typing import Any

from jax._src import distributed


def say(folder: str, process: int, text: str) -> None:
    """Tells all processes something under a key, in the place of what this one said there before.

    Args:
      folder: the key, with a slash at its end.
      process: the number of this one.
      text: what it says.
    """
    _client().key_value_set(f"{folder}{process}", text, allow_overwrite=True)


def said(folder: str) -> dict[int, str]:
    """What processes have said under a key so far, by their number."""
    return {int(key.rpartition("/")[2]): text for key, text in _client().key_value_dir_get(folder)}


def address() -> str:
    """Where process 0 serves it, as `host:port`."""
    return distributed.global_state.coordinator_address or ""


def process() -> int:
    """Number of this process, from 0."""
    return distributed.global_state.process_id


def processes() -> int:
    """How many processes have joined."""
    return distributed.global_state.num_processes


def _client() -> Any:
    return distributed.global_state.client
