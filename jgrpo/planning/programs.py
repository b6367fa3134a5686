"""The programs of a run, compiled for chips that are not there, and the memory each takes.

They are the functions that `Learner` and `Engine` jit, lowered for the shapes of a step whose
prompts and completions are as long as they may be. No weight is allocated: the arguments are
shapes. XLA's TPU compiler (libtpu) runs on any machine.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered
from jaxtyping import PyTree

from jgrpo import learning
from jgrpo.adapting import adapted_shapes, base_dtype
from jgrpo.assembly import attention_on, make_engine, make_learner
from jgrpo.buckets import bucket
from jgrpo.config import Config
from jgrpo.learner.shapes import state_shapes
from jgrpo.learner.step import Learner
from jgrpo.models.architecture import Architecture
from jgrpo.models.decoder import build
from jgrpo.parallel.lowered import with_shardings
from jgrpo.parallel.mesh import make_mesh
from jgrpo.parallel.rules import data_size
from jgrpo.planner import Memory, device_slots, token_kv
from jgrpo.planning.chips import Topology
from jgrpo.planning.hlo import Collective, collectives
from jgrpo.rollout.engine import Engine
from jgrpo.rollout.sample import drawing_limits
from jgrpo.rollout.work import ring_widths
from jgrpo.types import Prompts

LEARNING = ("facts", "logps", "update")
"""Programs of the learner; all others sample."""

_ARGUMENTS = {
    "update": {"parameters", "optimizer", "frozen"},
    "facts": {"parameters", "frozen"},
    "logps": {"parameters", "frozen"},
    "resize": set[str](),
}
"""What stands among the arguments of a program; of others it is the weights that sample."""

# With arguments, or without them where their temporaries alone are too large.
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program as the compiler left it.

    Attributes:
      name: of the function.
      hbm: bytes on each chip while it runs, by kind, what other stages keep there included. XLA's
        figures; gradients and activations are the planner's arithmetic, at most what XLA leaves
        for them, and `temporaries` the rest.
      compiled: False: the compiler refuses, for it does not fit; then nothing else is known of it.
      collectives: what the chips exchange.
    """

    name: str
    hbm: Mapping[str, int]
    compiled: bool = True
    collectives: tuple[Collective, ...] = ()

    @property
    def total(self) -> int:
        """Bytes on each chip."""
        return sum(self.hbm.values())


# No metadata server of a cloud is asked, and no lock taken that only a real TPU needs.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5e-4",
    "TPU_MIN_LOG_LEVEL": "3",
}


class _TooLarge(Exception):
    """A program that does not fit, so that those that begin with its results are not lowered."""


def devices(topology: Topology) -> Sequence[Any]:
    """The chips to compile for.

    Raises:
      ValueError: if libtpu cannot be found, or knows no such topology; or if there are too few CPU
        devices.
    """
    if topology.chip.platform == "cpu":
        if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", topology.count)
        found = jax.devices("cpu")
        if len(found) < topology.count:
            raise ValueError(f"--topology {topology.name}: jax has {len(found)} CPU devices")
        return found[: topology.count]
    os.environ.setdefault("TPU_LIBRARY_PATH", str(_libtpu()))
    for name, value in _WITHOUT_TPU.items():
        os.environ.setdefault(name, value)
    # What is compiled for a TPU cannot be loaded from disk where there is none.
    jax.config.update("jax_enable_compilation_cache", False)
    options: dict[str, Any] = {"chip_config_name": topology.chip.config}
    if topology.count == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology {topology.name}: {str(error).splitlines()[0]}") from error
    if len(found.devices) != topology.count:
        raise ValueError(f"--topology {topology.name}: libtpu makes {len(found.devices)} devices")
    return found.devices


def _libtpu() -> Path:
    """Where the TPU's compiler is: installed, or beside the environment (`.ci/run`)."""
    spec = importlib.util.find_spec("libtpu")
    places = [Path(sys.prefix) / "libtpu/libtpu/libtpu.so"]
    if spec is not None and spec.origin is not None:
        places.insert(0, Path(spec.origin).parent / "libtpu.so")
    for place in places:
        if place.is_file():
            return place
    raise ValueError(
        "libtpu, the TPU's compiler, is not installed: pip install 'jgrpo[tpu-aot]', or set "
        "TPU_LIBRARY_PATH to its libtpu.so"
    )


def compile_programs(
    cfg: Config,
    arch: Architecture,
    on: Sequence[Any],
    memory: Memory,
    say: Callable[[str], None] = lambda line: None,
) -> list[Program]:
    """Compiles what a run of this config compiles before its first step.

    Of the decode loop the widest is told of, since it takes most. Where a program does not fit,
    those that begin with its results are left out.

    Args:
      cfg: the run.
      arch: its model.
      on: the devices, there or not.
      memory: the planner's arithmetic, for gradients and activations.
      say: told of each program.
    """
    mesh = make_mesh(cfg.mesh, on)
    sampler, learner = _stages(cfg, arch, mesh)
    state, prompts = state_shapes(learner), _prompts(cfg)
    roles = len(cfg.plan.roles) * (_bytes(state.params) + _bytes(state.opt_state))
    kept = {
        "parameters": _bytes(state.params) + _bytes(state.aux),
        "frozen": _bytes(learner.frozen),
        "optimizer": _bytes(state.opt_state),
        "other_weights": _bytes(state.ref_params) + cfg.rollout.lag * _bytes(state.params) + roles,
    }
    compiler = _Compiler(cfg=cfg, arch=arch, mesh=mesh, memory=memory, say=say, kept=kept)
    with contextlib.suppress(_TooLarge):
        if cfg.method.source != "reference":
            ask = {"group_size": cfg.group_drawn, **drawing_limits(cfg.rollout)}
            sampler.compile_ahead(
                state.params, prompts, **ask, compiled=compiler, every_width=False
            )
    kept.pop("sampling_weights", None)  # they live as long as a rollout
    with contextlib.suppress(_TooLarge):
        learning.compile_ahead(cfg, learner, state, prompts, compiler)
    return list(compiler.found.values())


@dataclasses.dataclass(kw_only=True)
class _Compiler:
    """Compiles programs, and writes down what each takes.

    Attributes:
      cfg: the run.
      arch: its model.
      mesh: the devices.
      memory: the planner's arithmetic.
      say: told of each program.
      kept: bytes of what lives longer than a program, by kind.
      found: the programs by name; of equal names the last.
    """

    cfg: Config
    arch: Architecture
    mesh: Mesh
    memory: Memory
    say: Callable[[str], None]
    kept: dict[str, int]
    found: dict[str, Program] = dataclasses.field(default_factory=dict)

    def __call__(self, name: str, lowered: Lowered) -> Compiled:
        """Compiles a program, as `Compile` does."""
        self.say(f"compiling {name}")
        cache = _cache(self.cfg, self.arch, name, self.mesh)
        known = (cache, self.kept, self.memory)
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            used = _refused(str(error), sum(_arguments(name, self.kept).values()) + cache[0])
            if used is None:
                raise
            hbm = _by_kind(name, used, *known)
            self.found[name] = Program(name=name, hbm=hbm, compiled=False)
            raise _TooLarge from error
        hbm = _by_kind(name, _used(program), *known)
        if name in ("_for_sampling", "_gathered", "unstacked"):
            copy = with_shardings(lowered.out_info, program.output_shardings)
            self.kept["sampling_weights"] = _bytes(copy)
        exchanged = collectives(program.as_text() or "", self.mesh.shape)
        self.found[name] = Program(name=name, hbm=hbm, collectives=exchanged)
        return program


def _stages(cfg: Config, arch: Architecture, mesh: Mesh) -> tuple[Engine, Learner]:
    """Sampler and learner as a run has them, of shapes alone."""
    graphdef, fresh = build(arch, dtype=cfg.model.dtype, attention=attention_on(cfg, mesh))
    kind = np.dtype(base_dtype(cfg))
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, kind), fresh)
    shapes, frozen = adapted_shapes(cfg, arch, whole, mesh)
    # One id that ends completions stands for those of the tokenizer, which nothing else needs.
    sampler = make_engine(cfg, mesh, arch, eos_ids=(0,), tokenizer=None, frozen=frozen)
    return sampler, make_learner(cfg, mesh, graphdef, arch, shapes, frozen)


def _prompts(cfg: Config) -> Prompts:
    shape = (cfg.data.num_prompts_per_step, bucket(cfg.data.max_prompt_tokens))
    return Prompts(
        uid=np.arange(shape[0], dtype=np.int32),
        tokens=np.zeros(shape, np.int32),
        mask=np.ones(shape, bool),
    )


def _cache(cfg: Config, arch: Architecture, name: str, mesh: Mesh) -> tuple[int, int]:
    """Bytes of keys and values in a program, and of those that are kept beside it."""
    if name not in ("start", "resize", "advance", "admit"):
        return 0, 0
    lanes, of_lane = device_slots(cfg, data_size(mesh))
    widths = ring_widths(cfg.rollout.max_completion_tokens, cfg.rollout.chunk_tokens)
    rings = {"start": widths[:1], "resize": widths[-2:]}.get(name, widths[-1:])
    of_token = lanes * token_kv(cfg, arch) // mesh.shape["tensor"]
    prompts = bucket(cfg.data.max_prompt_tokens) * of_token
    inside = of_lane * sum(rings) * of_token
    return (inside, prompts) if name == "resize" else (inside + prompts, 0)


def _by_kind(
    name: str,
    used: int,
    cache: tuple[int, int],
    kept: Mapping[str, int],
    memory: Memory,
) -> dict[str, int]:
    """Bytes by kind while a program runs that takes so many, arguments included."""
    hbm = {kind: size for kind, size in kept.items() if size}
    beside = sum(hbm.values()) - sum(_arguments(name, kept).values()) + cache[1]
    hbm |= {"kv_cache": sum(cache)} if sum(cache) else {}
    rest = max(0, used + beside - sum(hbm.values()))
    if name == "update":
        hbm["gradients"] = min(memory.gradients, rest)
        hbm["activations"] = min(memory.activations, rest - hbm["gradients"])
        rest -= hbm["gradients"] + hbm["activations"]
    return hbm | {"temporaries": rest}


def _arguments(name: str, kept: Mapping[str, int]) -> dict[str, int]:
    """Bytes of what is kept and stands among the arguments of a program, not beside it."""
    weights = {"sampling_weights"} if "sampling_weights" in kept else {"parameters", "frozen"}
    kinds = _ARGUMENTS.get(name, weights)
    return {kind: size for kind, size in kept.items() if kind in kinds}


def _refused(message: str, arguments: int) -> int | None:
    """Bytes that a program would take, as the compiler says; None if it failed otherwise."""
    if (whole := _TOO_LARGE.search(message)) is not None:
        return int(float(whole[1]) * _UNITS[whole[2]])
    if (temporaries := _TEMPORARIES.search(message)) is not None:
        return arguments + int(float(temporaries[1]) * _UNITS[temporaries[2]])
    return None


def _used(program: Compiled) -> int:
    """Bytes that XLA says a program takes on each device."""
    stats: Any = program.memory_analysis()
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )


def _bytes(tree: PyTree[jax.ShapeDtypeStruct]) -> int:
    """Bytes on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
