"""The real programs compile for a TPU v5e that is not there, with its kernels in them.

Needs libtpu (.ci/run installs it), which compiles on any machine; without it these are skipped.
"""

import argparse
import importlib
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ahead_of_time import Shapes, lower, shapes_of
from by_hand import by_hand
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from jgrpo import algo
from jgrpo.config import MeshConfig
from jgrpo.learner.step import Learner
from jgrpo.models import decoder
from jgrpo.models.architecture import from_hf, logical_axes
from jgrpo.models.attention import Attention
from jgrpo.parallel.mesh import make_mesh
from jgrpo.parallel.rules import data_sharding, param_shardings
from jgrpo.rollout import engine
from jgrpo.rollout.decode import Drawing
from jgrpo.rollout.sample import Sampling
from jgrpo.types import Batch, Prompts

KERNEL = "tpu_custom_call"
P, G, T, LP = 8, 4, 97, 160
ARCH = {
    "model_type": "qwen3",
    "vocab_size": 1024,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}


@pytest.fixture(scope="module", autouse=True)
def _no_programs_from_disk():
    """What was compiled for a TPU cannot be loaded where there is none."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


pytestmark = pytest.mark.skipif(
    "TPU_LIBRARY_PATH" not in os.environ, reason="needs libtpu: see .ci/run"
)


@pytest.fixture(scope="module")
def devices():
    """Four chips of a v5e, to compile for."""
    # It would look for a TPU's metadata server, and take a lock that only a real TPU needs.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return topology.devices


@pytest.mark.usefixtures("devices")
def test_two_axes_of_eight_share_a_dim_of_a_torus_of_four():
    torus = topologies.get_topology_desc(platform="tpu", topology_name="v5p:4x4x4").devices
    mesh = make_mesh(MeshConfig(fsdp=8, expert=8), torus)
    assert mesh.devices.shape == (1, 8, 8, 1)
    assert set(mesh.devices.flat) == set(torus)


def mesh_of(devices, fsdp=1, count=4, tensor=1):
    return make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor), devices[:count])


def model_on(mesh, *, kernel, dtype="bfloat16", head=64):
    """Structure, and parameters as shapes with their shardings."""
    arch = from_hf(ARCH | {"head_dim": head})
    attention = Attention(kernel=kernel, mesh=mesh)
    graphdef, shapes = decoder.build(arch, dtype=dtype, attention=attention)
    one = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
    shardings = param_shardings(mesh, logical_axes(arch), shapes)
    return graphdef, jax.tree.map(one, shapes, shardings)


def prompts():
    return Prompts(
        uid=np.arange(P, dtype=np.int32),
        tokens=np.zeros((P, LP), np.int32),
        mask=np.ones((P, LP), bool),
    )


def update_text(mesh, **options):
    """The compiled update, with microbatches and remat."""
    graphdef, params = model_on(mesh, **options)
    optimizer = optax.adam(1e-3)
    learner = Learner(
        graphdef=graphdef,
        method=algo.method("grpo", penalty="none", kl_coef=0.0),
        optimizer=optimizer,
        mesh=mesh,
        shapes=params,
        shardings=jax.tree.map(lambda x: x.sharding, params),
        remat="full",
        microbatch_completions=G,
    )
    zeros = np.zeros((P, G, T), np.float32)
    batch = Batch(
        prompts=prompts(),
        tokens=zeros.astype(np.int32),
        mask=zeros == 0,
        weights=zeros,
        advantages=zeros,
        old_logp=zeros,
    )
    opt_state = jax.eval_shape(optimizer.init, params)
    opt_state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        opt_state,
        learner.opt_shardings,
    )
    by_prompt = shapes_of(batch, data_sharding(mesh))
    args = (shapes_of(params), shapes_of(opt_state), by_prompt)
    return lower(learner._jitted_update, *args)[0].compile().as_text()


@pytest.mark.parametrize(
    ("count", "fsdp", "tensor", "head"),
    [by_hand(1, 1, 1, 64), by_hand(4, 2, 1, 128), (4, 2, 2, 128), by_hand(4, 1, 2, 128)],
)
def test_update_compiles_with_splash_forward_and_backward(devices, count, fsdp, tensor, head):
    text = update_text(mesh_of(devices, fsdp, count, tensor), kernel="splash", head=head)
    assert KERNEL in text
    for phase in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{phase}" in text, phase


@pytest.mark.slow
def test_update_without_splash_has_no_kernel(devices):
    assert KERNEL not in update_text(mesh_of(devices), kernel="xla", head=128)


def rollout_programs(mesh, *, kv="model", **options):
    """The compiled first call (prompts and first tokens) and decode call, and the rings between."""
    graphdef, params = model_on(mesh, **options)
    by_prompt, drawing = data_sharding(mesh), Drawing(sampling=Sampling(), eos_ids=(1,))
    keys = jax.random.split(jax.random.key(0), (P, G))
    begin, until = np.zeros(P, np.int32), np.full(P, G, np.int32)
    asked = shapes_of((prompts(), keys, begin, until), by_prompt)
    weights, limit = shapes_of(params), jnp.full(P, T, jnp.int32)
    compiled_in = {"drawing": drawing, "mesh": mesh}

    def start(params, asked):
        shape = {"slots": G, "width": 128, "kv": kv}
        return engine._start(graphdef, params, *asked, limit, **shape, **compiled_in)[0]

    def advance(params, state):
        orders = jnp.asarray(until), limit
        return engine._advance(graphdef, params, state, *orders, steps=16, **compiled_in)

    lowered, state = lower(start, weights, asked)
    first = lowered.compile()
    leaves = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        for x, where in zip(state.leaves, first.output_shardings, strict=True)
    ]
    state = Shapes(leaves, state.structure)
    rings = [x for x in leaves if x.shape[2:4] == (P, G)]
    return first, lower(advance, weights, state)[0].compile(), rings


@pytest.mark.parametrize(
    ("count", "fsdp", "tensor", "kv"),
    [
        *((1, 1, 1, "int8"), (4, 2, 2, "model")),
        *(by_hand(1, 1, 1, "model"), by_hand(4, 1, 1, "model")),
        *(by_hand(4, 1, 1, "int8"), by_hand(4, 2, 2, "int8")),
    ],
)
def test_sampler_compiles_with_splash_for_prompts_alone(devices, count, fsdp, tensor, kv):
    mesh = mesh_of(devices, fsdp, count, tensor)
    start, advance, rings = rollout_programs(mesh, kernel="splash", head=128, kv=kv)
    assert "splash_mha_fwd" in start.as_text()
    assert KERNEL not in advance.as_text()
    assert len(rings) == (4 if kv == "int8" else 2)
    for x in rings:  # every chip has its part
        assert math.prod(x.sharding.shard_shape(x.shape)) * count == x.size


def test_paged_kernel_compiles_and_takes_the_memory_of_the_cascade(monkeypatch):
    """The shape of docs/paged.md: 4 * 1,024 + 64 * 512 tokens of 8 heads, 4 kB each."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    paged = importlib.import_module("paged")
    shape = {"prompts": 4, "group": 16, "prompt_len": 1024, "heads": 16, "kv_heads": 8}
    shape = argparse.Namespace(**shape, head_dim=128)
    programs = paged.on_v5e(shape, width=512, blocks=paged.Blocks())
    assert KERNEL in programs["paged"].as_text()
    assert KERNEL not in programs["cascade"].as_text()
    for program in programs.values():
        memory = program.memory_analysis()
        assert 0 <= memory.argument_size_in_bytes - (4 * 1024 + 64 * 512) * 4096 < 2**20
        assert memory.temp_size_in_bytes < 2**20
