"""From the `mesh` section of a config to a device mesh."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jgrpo.config import MeshConfig

AXES = ("replica", "fsdp")


def axis_sizes(cfg: MeshConfig, num_devices: int) -> dict[str, int]:
    """Returns the size of each mesh axis, with `replica: -1` filled in.

    Raises:
      ValueError: if the product does not equal the number of devices.
    """
    replica = num_devices // cfg.fsdp if cfg.replica == -1 else cfg.replica
    if replica * cfg.fsdp != num_devices or replica == 0:
        raise ValueError(
            f"mesh: replica {cfg.replica} x fsdp {cfg.fsdp} does not make {num_devices} "
            f"device(s); set mesh.replica=-1 and let mesh.fsdp divide {num_devices}"
        )
    return {"replica": replica, "fsdp": cfg.fsdp}


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices (all of them by default) as the config says.

    Raises:
      ValueError: if the axis sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(cfg, len(devices))
    # Without axis_types the axes would be Explicit, and every dot would need an output sharding.
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )
