"""What a config asks of its model that this model cannot give, on the mesh of the config."""

import math
from collections.abc import Mapping

from jgrpo.config import Config
from jgrpo.models import architecture
from jgrpo.models.architecture import Architecture, logical_axes
from jgrpo.parallel.rules import LOGICAL_TO_MESH


def refuse_misfits(cfg: Config, arch: Architecture, sizes: Mapping[str, int]) -> None:
    """Checks the lengths of sequences, and the axes of the mesh that split a model.

    Args:
      cfg: a checked config.
      arch: its model.
      sizes: of each mesh axis.

    Raises:
      ValueError: naming the setting, what came, and what the model allows.
    """
    _check_length(cfg, arch)
    _check_experts(cfg, arch)
    _check_microbatches(cfg, sizes)
    _check_tensor(arch, sizes["tensor"])


def _check_length(cfg: Config, arch: Architecture) -> None:
    """Raises for sequences that are longer than the model knows."""
    longest = cfg.data.max_prompt_tokens + cfg.rollout.max_completion_tokens
    if longest > arch.max_positions:
        raise ValueError(
            f"data.max_prompt_tokens + rollout.max_completion_tokens = {longest} tokens, but "
            f"{cfg.model.path!r} knows {arch.max_positions} positions"
        )


def _check_experts(cfg: Config, arch: Architecture) -> None:
    """Raises for settings of experts that do not fit the model."""
    if arch.num_experts % cfg.mesh.expert or (cfg.mesh.expert > 1 and not arch.num_experts):
        raise ValueError(
            f"mesh.expert must divide the {arch.num_experts} experts of a layer of "
            f"{cfg.model.path!r}, got {cfg.mesh.expert}"
        )
    if arch.num_experts and cfg.mesh.tensor > 1:
        raise ValueError(
            f"mesh.tensor must be 1 for {cfg.model.path!r}, which has experts, got "
            f"{cfg.mesh.tensor}; mesh.expert splits them"
        )
    off: dict[str, object] = {"router_aux_coef": 0, "router_z_coef": 0, "routing_replay": "off"}
    for name, idle in off.items():
        if not arch.num_experts and (got := getattr(cfg.model, name)) != idle:
            raise ValueError(
                f"model.{name} must be {idle}, since {cfg.model.path!r} has no experts, got {got}"
            )


def _check_microbatches(cfg: Config, sizes: Mapping[str, int]) -> None:
    """Refuses parts of groups on a mesh of three axes: the partitioner of jaxlib 0.10.2 aborts."""
    micro, size = cfg.optim.microbatch_completions, cfg.group_rows
    for axis in ("expert", "tensor"):
        if min(sizes["replica"], sizes["fsdp"], sizes[axis]) > 1 and micro % size:
            raise ValueError(
                f"optim.microbatch_completions must be 0 or a multiple of a group's {size} "
                f"completions where mesh.replica, mesh.fsdp and mesh.{axis} are all above 1, got "
                f"{micro}"
            )


def _check_tensor(arch: Architecture, tensor: int) -> None:
    """Refuses a tensor axis that would leave a matrix whole on every device of it."""
    tree = logical_axes(arch)
    names = {name for axes in (*tree["layers"].values(), tree.get("lm_head", ())) for name in axes}
    lengths = architecture.axis_sizes(arch)
    split = {name: lengths[name] for name in sorted(names) if LOGICAL_TO_MESH[name] == "tensor"}
    if any(length % tensor for length in split.values()):
        most = math.gcd(*split.values())
        works = [size for size in range(1, min(most, 64) + 1) if most % size == 0]
        raise ValueError(
            f"mesh.tensor must divide {split} of the model, got {tensor}; what does: "
            f"{', '.join(map(str, works))}"
        )
