"""Axis sizes multiply to the devices, or nothing is built."""

import jax
import pytest
from jax.sharding import AxisType

from jgrpo.config import MeshConfig
from jgrpo.parallel.mesh import axis_sizes, make_mesh
from jgrpo.parallel.rules import data_size


@pytest.mark.parametrize(
    ("replica", "fsdp", "devices", "filled"), [(-1, 1, 8, 8), (-1, 2, 8, 4), (2, 4, 8, 2)]
)
def test_minus_one_takes_the_devices_that_fsdp_leaves(replica, fsdp, devices, filled):
    cfg = MeshConfig(replica=replica, fsdp=fsdp)
    ones = {"replica": filled, "fsdp": fsdp, "expert": 1, "tensor": 1}
    assert axis_sizes(cfg, devices) == ones
    doubled = MeshConfig(replica=replica, fsdp=fsdp, expert=2, tensor=2)
    assert axis_sizes(doubled, 4 * devices) == ones | {"expert": 2, "tensor": 2}


@pytest.mark.parametrize(("replica", "fsdp"), [(-1, 3), (3, 2), (-1, 16), (0, 1)])
def test_sizes_that_do_not_make_all_devices_are_refused(replica, fsdp):
    refused = rf"fsdp {fsdp} x expert 1 x tensor 1 does not make 8 device"
    with pytest.raises(ValueError, match=refused):
        axis_sizes(MeshConfig(replica=replica, fsdp=fsdp), 8)


def test_mesh_holds_all_devices_by_default_with_axes_left_to_xla():
    mesh = make_mesh(MeshConfig(fsdp=2))
    assert dict(mesh.shape) == {"replica": 4, "fsdp": 2, "expert": 1, "tensor": 1}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * 4


def test_prompts_are_split_over_all_axes():
    assert data_size(make_mesh(MeshConfig(fsdp=2), jax.devices()[:4])) == 4
    assert data_size(make_mesh(MeshConfig(expert=2), jax.devices()[:4])) == 4
    assert data_size(make_mesh(MeshConfig(fsdp=2, tensor=2))) == 4
