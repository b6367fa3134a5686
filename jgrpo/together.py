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
    hosts.check_alike(said, "config and as many devices")
