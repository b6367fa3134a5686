"""Joins the processes of a program that runs on several hosts."""

import os
from typing import Any

import jax

VARIABLES = ("JGRPO_COORDINATOR", "JGRPO_NUM_PROCESSES", "JGRPO_PROCESS_ID")
"""Address of process 0 as `host:port`, how many processes there are, and which this one is."""

_NO_CLUSTER = "coordinator_address should be defined"


def initialize(timeout_s: int = 300, heartbeat_s: int = 100) -> None:
    """Joins this process to the others, if the environment says that there are others.

    What the three `VARIABLES` say comes first; else what jax finds by itself (Slurm, Open MPI, the
    metadata of a TPU VM, GKE); where it finds nothing, this process is alone. To be called before
    anything uses a device; called again, it does nothing.

    Args:
      timeout_s: seconds to wait for the others.
      heartbeat_s: seconds without a heartbeat after which jax ends the processes that are left.

    Raises:
      ValueError: if some of the variables are set and others are not, or if one makes no sense.
      RuntimeError: from jax, if the others do not come in time, or a device has been used.
    """
    if jax.distributed.is_initialized():
        return
    limits: dict[str, Any] = {
        "initialization_timeout": timeout_s,
        "heartbeat_timeout_seconds": heartbeat_s,
    }
    if explicit := _explicit():
        jax.distributed.initialize(*explicit, **limits)
        return
    try:
        jax.distributed.initialize(**limits)
    except ValueError as error:  # raised before anything is started
        if _NO_CLUSTER not in str(error):
            raise


def _explicit() -> tuple[str, int, int] | None:
    """What the variables say; None if none is set."""
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not given:
        return None
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise ValueError(f"{', '.join(given)} is set but not {', '.join(missing)}: set all or none")
    address, *numbers = given.values()
    if ":" not in address:
        raise ValueError(f"{VARIABLES[0]} must be host:port, got {address!r}")
    for name, value in zip(VARIABLES[1:], numbers, strict=True):
        if not value.isdecimal():
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    processes, process = map(int, numbers)
    if process >= processes:
        raise ValueError(
            f"{VARIABLES[2]} must be below {VARIABLES[1]} ({processes}), got {process}"
        )
    return address, processes, process
