"""What several processes must have in common before they train together."""

import hashlib

import jax

from jgrpo import config_io
from jgrpo.config import Config
from jgrpo.parallel import hosts


def check_alike(cfg: Config) -> None:
    """Refuses processes that would not do the same; returns at once where one is alone.

    Raises:
      ValueError: in all processes, if one was started with another config or has another number
        of devices.
    """
    if not hosts.several():
        return
    ours = hashlib.sha256(config_io.dump(cfg).encode()).hexdigest()[:12]
    said = hosts.exchange(f"config {ours}, {jax.local_device_count()} device(s)")
    if different := [i for i, what in enumerate(said) if what != said[0]]:
        raise ValueError(
            f"all processes must be started with the same config and as many devices: process 0 "
            f"has {said[0]}, process {different[0]} has {said[different[0]]}"
        )
