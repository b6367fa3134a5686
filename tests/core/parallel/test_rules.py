"""One table decides where every dim of every parameter lives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from small_models import CONFIGS, mesh, model

from jgrpo.models.architecture import logical_axes
from jgrpo.parallel.rules import data_sharding, param_shardings, partition_spec, replicated


def test_model_dim_is_split_over_fsdp_and_heads_over_tensor():
    assert partition_spec(("layers", "heads", "head", "model")) == PartitionSpec(
        None, "tensor", None, "fsdp"
    )


def test_two_dims_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match="one mesh axis on two dims"):
        partition_spec(("model", "model"))


def test_unknown_logical_axis_is_named():
    with pytest.raises(ValueError, match=r"unknown logical axes \['modell'\].*'model'"):
        partition_spec(("layers", "modell"))


def shardings_of(sizes, fsdp):
    axes = dict.fromkeys(sizes, ("model", "ffn"))
    shapes = {name: jax.ShapeDtypeStruct((size, 8), jnp.float32) for name, size in sizes.items()}
    return param_shardings(mesh(8, fsdp), axes, shapes)


def test_dim_that_its_axis_does_not_divide_is_not_split():
    got = shardings_of({"even": 12, "odd": 13}, fsdp=4)
    assert got["even"].spec == PartitionSpec("fsdp", "tensor")
    assert got["odd"].spec == PartitionSpec(None, "tensor")


@pytest.mark.parametrize("family", CONFIGS)
def test_every_matrix_in_the_layers_is_split_over_fsdp(family):
    arch, _, params = model(family)
    got = param_shardings(mesh(8, 2), logical_axes(arch), jax.eval_shape(lambda: params))
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        placed = jax.device_put(params["layers"][name], got["layers"][name])
        assert placed.addressable_shards[0].data.size == placed.size // 2


@pytest.mark.parametrize("family", CONFIGS)
def test_heads_feed_forward_and_a_head_of_its_own_are_split_over_tensor(family):
    arch, _, params = model(family)
    where = mesh(8, 2, tensor=2)
    got = param_shardings(where, logical_axes(arch), jax.eval_shape(lambda: params))
    placed = jax.tree.map(jax.device_put, params, got)
    held = lambda x: x.size // x.addressable_shards[0].data.size  # noqa: E731
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        assert held(placed["layers"][name]) == 4
    if not arch.tied_embeddings:
        assert held(placed["lm_head"]) == 4


def test_prompts_are_split_over_all_devices_and_replicated_arrays_are_whole():
    rows = np.zeros((16, 3))
    split = jax.device_put(rows, data_sharding(mesh(8, 2)))
    assert split.addressable_shards[0].data.shape == (2, 3)
    whole = jax.device_put(rows, replicated(mesh(8, 2)))
    assert whole.addressable_shards[0].data.shape == (16, 3)
