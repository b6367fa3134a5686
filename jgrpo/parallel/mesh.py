"""From the `mesh` section of a config to a device mesh."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh

from jgrpo.config import MeshConfig

AXES = ("replica", "fsdp", "expert", "tensor")


def axis_sizes(cfg: MeshConfig, num_devices: int) -> dict[str, int]:
    """Returns the size of each mesh axis, with `replica: -1` filled in.

    Raises:
      ValueError: if the product does not equal the number of devices.
    """
    inner = {"fsdp": cfg.fsdp, "expert": cfg.expert, "tensor": cfg.tensor}
    product = math.prod(inner.values())
    replica = num_devices // product if cfg.replica == -1 else cfg.replica
    if replica * product != num_devices or replica == 0:
        sizes = " x ".join(f"{name} {size}" for name, size in inner.items())
        raise ValueError(
            f"mesh: replica {cfg.replica} x {sizes} does not make {num_devices} device(s); set "
            f"mesh.replica=-1 and let the product of the others divide {num_devices}"
        )
    return {"replica": replica, **inner}


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices (all of them by default) as the config says.

    Raises:
      ValueError: if the axis sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = tuple(axis_sizes(cfg, len(devices)).values())
    # Two axes of 8 lie on a torus of 4 x 4 x 4 only if they share one of its dims.
    arranged = create_device_mesh(shape, devices, allow_split_physical_axes=True)
    # Without axis_types the axes would be Explicit, and every dot would need an output sharding.
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))
