"""Adapters in the form of PEFT: targets by regular expression in, adapter files out."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import numpy as safetensors

from jgrpo.models import hf
from jgrpo.models.architecture import INPUT_DIMS, Architecture


def targets(arch: Architecture, pattern: str) -> tuple[str, ...]:
    """The matrices of each layer whose Hugging Face names a regular expression matches.

    Args:
      arch: the model.
      pattern: must match whole names, such as `model.layers.0.self_attn.q_proj`.

    Returns:
      Our names of them, in the order of `INPUT_DIMS`.

    Raises:
      ValueError: if it matches none, or a matrix in some layers and not in others.

    Example:
      >>> from jgrpo.models.load import architecture
      >>> targets(architecture("tiny"), ".*(q|v|down)_proj")
      ('q', 'v', 'down')
    """
    in_layers: dict[str, list[bool]] = {name: [] for name in INPUT_DIMS}
    for name, (path, _) in hf.tensor_names(arch).items():
        if path[-1] in in_layers:
            module = name.removesuffix(".weight")
            in_layers[path[-1]].append(re.fullmatch(pattern, module) is not None)
    in_layers = {name: found for name, found in in_layers.items() if found}
    for name, found in in_layers.items():
        if any(found) and not all(found):
            layers = ", ".join(str(layer) for layer, is_one in enumerate(found) if is_one)
            raise ValueError(
                "model.lora.targets: must match a matrix in every layer or in none, but "
                f"{pattern!r} matches {_MODULES[name]} in the layers {layers} only"
            )
    if not any(map(all, in_layers.values())):
        raise ValueError(
            f"model.lora.targets: {pattern!r} matches no whole name such as model.layers.0."
            f"self_attn.q_proj; there are {', '.join(_MODULES[name] for name in in_layers)}"
        )
    return tuple(name for name, found in in_layers.items() if all(found))


def save_adapter(
    directory: Path,
    arch: Architecture,
    adapters: PyTree,
    *,
    rank: int,
    alpha: float,
    base: str,
    dtype: str,
) -> None:
    """Writes `adapter_model.safetensors` and `adapter_config.json`, which `peft` loads.

    Args:
      directory: exists.
      arch: the model.
      adapters: as `lora.fresh_adapters` gives them, as numpy arrays.
      rank: of the adapters.
      alpha: they count alpha / rank times.
      base: directory or Hugging Face id of the model without them.
      dtype: precision of the written adapters.

    Raises:
      ValueError: if a number is not finite in that precision (named).
    """
    tensors = {}
    for name, (path, layer) in hf.tensor_names(arch).items():
        leaf = path[-1]
        if leaf not in adapters["layers"]:
            continue
        module = f"base_model.model.{name.removesuffix('.weight')}"
        for part, shape in (("a", (-1, rank)), ("b", (rank, -1))):
            whole = adapters["layers"][leaf][part][layer].reshape(shape).T
            value = np.ascontiguousarray(whole.astype(jnp.dtype(dtype)))
            if not np.isfinite(value).all():
                raise ValueError(f"{module}: its adapter is not finite in {dtype}")
            tensors[f"{module}.lora_{part.upper()}.weight"] = value
    # Bytes of our own, as in `hf.save`.
    content = safetensors.save(tensors, metadata={"format": "pt"})
    (directory / "adapter_model.safetensors").write_bytes(content)
    config = _config(list(adapters["layers"]), rank, alpha, base)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config(matrices: Sequence[str], rank: int, alpha: float, base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": [_MODULES[name] for name in matrices],
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


_MODULES: Mapping[str, str] = {name: f"{name}_proj" for name in INPUT_DIMS}
