"""What a run trains: all weights of its model, or adapters beside weights that stay (LoRA)."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jgrpo.config import Config
from jgrpo.keys import named_key, root_key
from jgrpo.models import hf, lora
from jgrpo.models.architecture import Architecture, AxesTree, logical_axes
from jgrpo.models.load import LoadedModel, located
from jgrpo.models.peft import save_adapter, targets
from jgrpo.parallel.hosts import place
from jgrpo.parallel.lowered import with_shardings
from jgrpo.parallel.rules import param_shardings


def base_dtype(cfg: Config) -> str:
    """Precision of the weights as they are loaded: those that stay need no more than products."""
    return cfg.model.dtype if cfg.model.lora.rank else cfg.model.param_dtype


def trained_axes(cfg: Config, arch: Architecture) -> tuple[AxesTree, dict[str, int]]:
    """The table of what is trained, and the length of each of its axes.

    Raises:
      ValueError: if `model.lora.targets` names no matrices of the model.
    """
    rank = cfg.model.lora.rank
    sizes = lora.adapter_sizes(arch, rank)
    if not rank:
        return logical_axes(arch), sizes
    return lora.adapter_axes(arch, targets(arch, cfg.model.lora.targets)), sizes


def adapted(cfg: Config, model: LoadedModel, mesh: Mesh) -> tuple[LoadedModel, PyTree]:
    """The model with the initial values of what is trained, and the weights that stay.

    Args:
      cfg: the run's config.
      model: with all weights, in any placement.
      mesh: the devices.

    Returns:
      The model with adapters as its parameters and the frozen weights on the mesh; the model as it
      is and None if all weights are trained.

    Raises:
      ValueError: if `model.lora.targets` names no matrices of the model.
      ModuleNotFoundError: if weights are to be quantised without the extra `lora`.
    """
    settings, arch = cfg.model.lora, model.arch
    if not settings.rank:
        return model, None
    matrices, key = targets(arch, settings.targets), named_key(root_key(cfg.run.seed), "lora")
    fresh = lora.fresh_adapters(arch, matrices, settings.rank, key, cfg.model.param_dtype)
    freeze = _freeze(cfg, arch)
    shardings = param_shardings(mesh, logical_axes(arch), jax.eval_shape(freeze, model.params))
    frozen = place(freeze(model.params), shardings)
    return dataclasses.replace(model, params=fresh), frozen


def adapted_shapes(
    cfg: Config, arch: Architecture, shapes: PyTree[jax.ShapeDtypeStruct], mesh: Mesh
) -> tuple[PyTree, PyTree]:
    """The shapes of what is trained and of what stays, as `adapted` makes them; None if all is.

    Args:
      cfg: the run's config.
      arch: its model.
      shapes: of all weights.
      mesh: the devices.
    """
    settings = cfg.model.lora
    if not settings.rank:
        return shapes, None
    matrices, kind = targets(arch, settings.targets), cfg.model.param_dtype
    draw = partial(lora.fresh_adapters, arch, matrices, settings.rank, dtype=kind)
    held = jax.eval_shape(_freeze(cfg, arch), shapes)
    shardings = param_shardings(mesh, logical_axes(arch), held)
    return jax.eval_shape(draw, key=jax.random.key(0)), with_shardings(held, shardings)


def merged(cfg: Config, model: LoadedModel, adapters: PyTree) -> PyTree:
    """The weights that base and adapters make together, those of the base as training saw them.

    Args:
      cfg: the run's config.
      model: with the weights of the base.
      adapters: of a checkpoint.
    """
    return lora.merged(lora.joined(_freeze(cfg, model.arch)(model.params), adapters))


def save_peft(
    directory: Path, cfg: Config, model: LoadedModel, adapters: PyTree, dtype: str
) -> None:
    """Writes the adapters of a checkpoint as files of PEFT, and the tokenizer.

    Raises:
      ValueError: if a number is not finite in this precision.
    """
    settings, base = cfg.model.lora, cfg.model.path
    if base == "tiny" or Path(base).expanduser().exists():  # a hub id stays what it is
        base = str(located(base).resolve())
    numbers = {"rank": settings.rank, "alpha": settings.alpha}
    save_adapter(directory, model.arch, adapters, **numbers, base=base, dtype=dtype)
    hf.write_tokenizer(directory, model.tokenizer)


def _freeze(cfg: Config, arch: Architecture) -> Callable[[PyTree], PyTree]:
    settings = cfg.model.lora
    return partial(
        lora.frozen,
        matrices=targets(arch, settings.targets),
        scale=settings.alpha / settings.rank,
        bits=settings.quantize,
    )
