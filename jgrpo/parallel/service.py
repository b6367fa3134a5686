"""jax's coordination service: how processes hear of each other without using a device.

`jax.distributed` starts it and does not hand it out.
"""

from typing import Any

from jax._src import distributed


def client() -> Any:
    """The store of texts by key that all processes share, once they are joined."""
    return distributed.global_state.client


def address() -> str:
    """Where process 0 serves it, as `host:port`."""
    return distributed.global_state.coordinator_address or ""


def process() -> int:
    """Number of this process, from 0."""
    return distributed.global_state.process_id


def processes() -> int:
    """How many processes have joined."""
    return distributed.global_state.num_processes
