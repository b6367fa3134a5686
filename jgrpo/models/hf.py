"""Hugging Face directories in and out: config.json, safetensors (single or sharded), tokenizer.

One table names every tensor; the gguf reader translates its names into the same table. Weights
are numpy arrays here: no device is touched. Where a path comes from is decided in `load.py`.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from jgrpo.models.architecture import (
    Architecture,
    axis_sizes,
    from_hf,
    logical_axes,
    to_hf,
)
from jgrpo.models.decoder import Params

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def load_architecture(directory: Path) -> Architecture:
    """Reads `config.json`.

    Raises:
      ValueError: if it is absent, or asks for what is not modelled.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} is not a Hugging Face model: it has no config.json")
    return from_hf(json.loads(path.read_text(encoding="utf-8")))


def load_params(directory: Path, arch: Architecture, param_dtype: str) -> Params:
    """Reads the weights of a directory into stacked numpy arrays.

    Args:
      directory: holds `model.safetensors`, or shards with `model.safetensors.index.json`.
      arch: what the weights must fit.
      param_dtype: precision to hold them in; the file may be float32, bfloat16 or float16.

    Returns:
      Parameters in the structure of `logical_axes(arch)`.

    Raises:
      ValueError: naming the tensors that are missing, unexpected or of the wrong shape.
    """
    files = _weight_files(directory)
    handles = {path: safe_open(path, framework="numpy") for path in sorted(set(files.values()))}
    return assemble(
        arch,
        names=files,
        read=lambda name: handles[files[name]].get_tensor(name),
        param_dtype=param_dtype,
        source=str(directory),
    )


def assemble(
    arch: Architecture,
    *,
    names: Iterable[str],
    read: Callable[[str], Shaped[np.ndarray, "..."]],
    param_dtype: str,
    source: str,
) -> Params:
    """Stacks and transposes tensors, known by their Hugging Face names, into our parameters.

    Args:
      arch: what the tensors must fit.
      names: the tensors that exist.
      read: returns one of them; called once per tensor.
      param_dtype: precision of the result.
      source: what to call the origin in errors.

    Raises:
      ValueError: naming the tensors that are missing, unexpected or of the wrong shape.
    """
    table = tensor_names(arch)
    present = {name for name in names if not _is_redundant(name, arch)}
    missing, unexpected = sorted(table.keys() - present), sorted(present - table.keys())
    if missing or unexpected:
        raise ValueError(
            f"{source}: the weights do not fit config.json ({arch.family}); "
            f"missing: {_first(missing)}; unexpected: {_first(unexpected)}"
        )
    shapes = _shapes(arch)
    dtype = jnp.dtype(param_dtype)
    params: Params = {"layers": {}}
    for name, (path, layer) in table.items():
        *parents, leaf = path
        node = params["layers"] if parents else params
        shape = shapes[path]
        if leaf not in node:
            node[leaf] = np.empty(shape, dtype)
        tensor = read(name)
        target = shape if layer is None else shape[1:]
        expected = _hf_shape(leaf, target)
        if tensor.shape != expected:
            raise ValueError(
                f"{source}: {name} has shape {list(tensor.shape)}, but config.json implies "
                f"{list(expected)}"
            )
        if leaf in _INPUT_DIMS:
            tensor = tensor.T
        value = tensor.reshape(target)
        if layer is None:
            node[leaf][...] = value
        else:
            node[leaf][layer] = value
    return params


def save(
    directory: Path,
    arch: Architecture,
    params: Params,
    *,
    dtype: str,
    max_shard_bytes: int = 5 * 1000**3,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Writes a directory that transformers, vLLM and SGLang load.

    Args:
      directory: created if needed; must not hold weights yet.
      arch: becomes config.json, written last: an interrupted save does not load.
      params: numpy or jax arrays.
      dtype: precision of the written weights.
      max_shard_bytes: weights beyond this are split over several files.
      tokenizer: saved beside the weights; its special ids enter config.json.
      generation: content of generation_config.json, or None.

    Raises:
      ValueError: if the directory holds weights already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    old = sorted(path.name for path in directory.glob("model*.safetensors*"))
    if old:
        raise ValueError(f"{directory} already holds weights ({old[0]}); choose an empty folder")
    _write_weights(directory, _tensors(arch, params, dtype), max_shard_bytes)
    config = {**to_hf(arch), "torch_dtype": jnp.dtype(dtype).name}
    if tokenizer is not None:
        _write_tokenizer(directory, tokenizer)
        config |= {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    if generation is not None:
        _write_json(directory / "generation_config.json", generation)
    _write_json(directory / "config.json", config)


def tensor_names(arch: Architecture) -> dict[str, tuple[tuple[str, ...], int | None]]:
    """Hugging Face name of every tensor -> (path in our parameters, layer or None)."""
    table: dict[str, tuple[tuple[str, ...], int | None]] = {}
    for leaf, value in logical_axes(arch).items():
        if leaf != "layers":
            table[_TOP[leaf]] = ((leaf,), None)
            continue
        for layer in range(arch.num_layers):
            for name in value:
                table[f"model.layers.{layer}.{_LAYER[name]}"] = (("layers", name), layer)
    return table


def _weight_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    index, single = directory / _INDEX, directory / _SINGLE
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        absent = sorted({file for file in weight_map.values() if not (directory / file).is_file()})
        if absent:
            raise ValueError(f"{directory}: {_INDEX} lists files that are absent: {_first(absent)}")
        return {name: directory / file for name, file in weight_map.items()}
    if single.is_file():
        with safe_open(single, framework="numpy") as handle:
            return dict.fromkeys(handle.keys(), single)
    raise ValueError(f"{directory}: no weights; looked for {_SINGLE} and {_INDEX}")


def _tensors(
    arch: Architecture, params: Params, dtype: str
) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """Every tensor under its Hugging Face name, in its layout and in the asked precision."""
    for name, (path, layer) in tensor_names(arch).items():
        *parents, leaf = path
        stacked = params["layers"][leaf] if parents else params[leaf]
        value = np.asarray(stacked if layer is None else stacked[layer]).astype(jnp.dtype(dtype))
        split = _INPUT_DIMS.get(leaf)
        if split is not None:
            value = value.reshape(math.prod(value.shape[:split]), -1).T
        elif leaf.endswith("bias"):
            value = value.reshape(-1)
        yield name, np.ascontiguousarray(value)


def _write_weights(
    directory: Path,
    tensors: Iterator[tuple[str, Shaped[np.ndarray, "..."]]],
    max_shard_bytes: int,
) -> None:
    """Writes shards as they fill up, then gives them their final names and the index."""
    shard: dict[str, np.ndarray] = {}
    shards: list[list[str]] = []
    total = shard_bytes = 0

    def flush() -> None:
        # Other libraries refuse files that do not name a framework's layout.
        save_file(shard, directory / f"part-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and shard_bytes + tensor.nbytes > max_shard_bytes:
            flush()
            shard_bytes = 0
        shard[name] = tensor
        shard_bytes += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (directory / "part-0").rename(directory / _SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"part-{number}").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    _write_json(directory / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(str(directory))
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        # The name that transformers 4, and with it most servers, knows this class by.
        _write_json(path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shapes(arch: Architecture) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape of every parameter."""
    sizes = axis_sizes(arch)
    tree = logical_axes(arch)
    flat = {(name,): axes for name, axes in tree.items() if name != "layers"}
    flat |= {("layers", name): axes for name, axes in tree["layers"].items()}
    return {path: tuple(sizes[axis] for axis in axes) for path, axes in flat.items()}


def _hf_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one layer's tensor in a file: linear layers are [output, input]."""
    split = _INPUT_DIMS.get(leaf)
    if split is not None:
        return (math.prod(shape[split:]), math.prod(shape[:split]))
    return (math.prod(shape),) if leaf.endswith("bias") else shape


def _is_redundant(name: str, arch: Architecture) -> bool:
    """True for tensors that some files hold and that follow from others."""
    return name.endswith("rotary_emb.inv_freq") or (
        arch.tied_embeddings and name == _TOP["lm_head"]
    )


def _first(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:4]) or "none"
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


_TOP: Mapping[str, str] = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}

_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}

# How many of our leading dimensions are a linear layer's input; the rest are its output.
_INPUT_DIMS: Mapping[str, int] = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
