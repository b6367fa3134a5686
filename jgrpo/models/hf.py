"""Hugging Face directories in and out: config.json, safetensors (single or sharded), tokenizer.

One table names every tensor; the gguf reader translates its names into the same table. Weights
are numpy arrays here: no device is touched. Where a path comes from is decided in `load.py`.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors
from transformers import PreTrainedTokenizerBase

from jgrpo.files import read_json
from jgrpo.models.architecture import (
    EXPERTS,
    INPUT_DIMS,
    Architecture,
    axis_sizes,
    from_hf,
    logical_axes,
    num_params,
    to_hf,
)
from jgrpo.models.decoder import Params

MAX_SHARD_BYTES = 2 * 1000**3

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LOG = logging.getLogger(__name__)


def load_architecture(directory: Path) -> Architecture:
    """Reads `config.json`.

    Raises:
      ValueError: if it is absent, or asks for what is not modelled.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} is not a Hugging Face model: it has no config.json")
    return from_hf(read_json(path))


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
    handles = {path: _opened(path) for path in sorted(set(files.values()))}
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
    for name, (path, index) in table.items():
        *parents, leaf = path
        node = params["layers"] if parents else params
        if leaf not in node:
            node[leaf] = np.empty(shapes[path], dtype)
        tensor = read(name)
        target = shapes[path][len(index) :]
        expected = _hf_shape(leaf, target)
        if tensor.shape != expected:
            raise ValueError(
                f"{source}: {name} has shape {list(tensor.shape)}, but config.json implies "
                f"{list(expected)}"
            )
        if leaf in _INPUT_DIMS:
            tensor = tensor.T
        node[leaf][index] = tensor.reshape(target)
    return params


def save(
    directory: Path,
    arch: Architecture,
    params: Params,
    *,
    dtype: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation: Mapping[str, Any] | None = None,
    say: Callable[[str], object] = _LOG.info,
) -> None:
    """Writes a directory that transformers, vLLM and SGLang load.

    One file at a time is converted and written, so the memory needed beyond the weights is twice
    the largest shard: its tensors, and its bytes.

    Args:
      directory: created if needed; must not hold weights yet.
      arch: becomes config.json, written last: an interrupted save does not load.
      params: numpy or jax arrays.
      dtype: precision of the written weights: "float32", "bfloat16" or "float16".
      max_shard_bytes: weights beyond this are split over several files; a tensor is never split.
      tokenizer: saved beside the weights; its special ids enter config.json.
      generation: content of generation_config.json, or None.
      say: is told of each weight file before it is written.

    Raises:
      ValueError: if the directory holds weights already, the precision is not one of the three,
        or a weight is not finite in it (named).
      OSError: if a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    old = sorted(path.name for path in directory.glob("model*.safetensors*"))
    if old:
        raise ValueError(f"{directory} already holds weights ({old[0]}); choose an empty folder")
    shards = plan_shards(arch, dtype, max_shard_bytes)
    for file, tensors in shards.items():
        size = sum(_num_bytes(shape, dtype) for shape in tensors.values())
        say(f"writing {file} ({size / 1e6:,.1f} MB in {dtype})")
        _write_safetensors(directory / file, arch, params, tensors, dtype)
    if len(shards) > 1:
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
        metadata = {"total_size": num_bytes(arch, dtype)}
        _write_json(directory / _INDEX, {"metadata": metadata, "weight_map": weight_map})
    config = {**to_hf(arch), "torch_dtype": jnp.dtype(dtype).name}
    if tokenizer is not None:
        write_tokenizer(directory, tokenizer)
        config |= {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    if generation is not None:
        _write_json(directory / "generation_config.json", generation)
    _write_json(directory / "config.json", config)


def num_bytes(arch: Architecture, dtype: str) -> int:
    """Bytes that `save` writes as weights, file headers left out."""
    return num_params(arch) * _itemsize(dtype)


def plan_shards(
    arch: Architecture, dtype: str, max_shard_bytes: int
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Which tensor goes into which file.

    Args:
      arch: decides the tensors.
      dtype: precision of the written weights.
      max_shard_bytes: a file is closed before it would exceed this; one tensor may.

    Returns:
      File name -> name and shape of each of its tensors, in the order of `tensor_names`.

    Raises:
      ValueError: if `max_shard_bytes` is less than 1, or the precision cannot be written.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    shapes = _shapes(arch)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, (path, index) in tensor_names(arch).items():
        shape = _hf_shape(path[-1], shapes[path][len(index) :])
        size = _num_bytes(shape, dtype)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": tensors
        for number, tensors in enumerate(shards, start=1)
    }


def tensor_names(arch: Architecture) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Hugging Face name of every tensor -> (path in our parameters, index in what stands there).

    The index is the layer, then the expert; empty for what is no layer's.
    """
    table: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for leaf, value in logical_axes(arch).items():
        if leaf != "layers":
            table[_TOP[leaf]] = ((leaf,), ())
            continue
        for layer in range(arch.num_layers):
            for name, (_, *axes) in value.items():
                ours, theirs = ("layers", name), f"model.layers.{layer}.{_LAYER[name]}"
                if axes[0] != "experts":
                    table[theirs] = (ours, (layer,))
                    continue
                for expert in range(arch.num_experts):
                    table[theirs.format(expert)] = (ours, (layer, expert))
    return table


def _weight_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    index, single = directory / _INDEX, directory / _SINGLE
    if index.is_file():
        weight_map = read_json(index)["weight_map"]
        absent = sorted({file for file in weight_map.values() if not (directory / file).is_file()})
        if absent:
            raise ValueError(f"{directory}: {_INDEX} lists files that are absent: {_first(absent)}")
        return {name: directory / file for name, file in weight_map.items()}
    if single.is_file():
        with _opened(single) as handle:
            return dict.fromkeys(handle.keys(), single)
    raise ValueError(f"{directory}: no weights; looked for {_SINGLE} and {_INDEX}")


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def _write_safetensors(
    path: Path,
    arch: Architecture,
    params: Params,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
) -> None:
    """Writes one file of weights."""
    table = tensor_names(arch)
    tensors = {name: _tensor(name, params, *table[name], dtype) for name in shapes}
    for name, shape in shapes.items():
        found = tensors[name].shape
        assert found == shape, f"{name} has shape {found}, not {shape}"
    # Other libraries refuse files that do not name a framework's layout. We write the bytes
    # ourselves: `save_file` makes files that only their owner may read, and its errors have no
    # errno.
    path.write_bytes(safetensors.save(tensors, metadata={"format": "pt"}))


def _tensor(
    name: str, params: Params, path: tuple[str, ...], index: tuple[int, ...], dtype: str
) -> Shaped[np.ndarray, "..."]:
    """One tensor in the layout of its file and in the asked precision."""
    *parents, leaf = path
    stacked = params["layers"][leaf] if parents else params[leaf]
    exact = np.asarray(stacked[index])
    with np.errstate(over="ignore"):
        value = exact.astype(jnp.dtype(dtype))
    if not np.isfinite(value).all():
        if np.isfinite(exact).all():
            largest = float(np.abs(exact).max())
            raise ValueError(
                f"{name}: {largest:.3g} is more than {dtype} can hold; use bfloat16 or float32"
            )
        raise ValueError(f"{name}: has weights that are not finite; take an earlier step")
    split = _INPUT_DIMS.get(leaf)
    if split is not None:
        value = value.reshape(math.prod(value.shape[:split]), -1).T
    elif leaf.endswith("bias"):
        value = value.reshape(-1)
    return np.ascontiguousarray(value)


def _num_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * _itemsize(dtype)


def _itemsize(dtype: str) -> int:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    return jnp.dtype(dtype).itemsize


def write_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the files of a tokenizer, under a class name that transformers 4 knows too."""
    tokenizer.save_pretrained(str(directory))
    path = directory / "tokenizer_config.json"
    config = read_json(path)
    if config.get("tokenizer_class") == "TokenizersBackend":
        # Most servers are of transformers 4.
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


# Precisions that weights are written in.
_DTYPES = ("float32", "bfloat16", "float16")

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
    "router": "mlp.gate.weight",
    "experts_gate": "mlp.experts.{}.gate_proj.weight",
    "experts_up": "mlp.experts.{}.up_proj.weight",
    "experts_down": "mlp.experts.{}.down_proj.weight",
}

# How many of our leading dims are a linear layer's input in a file; the rest are its output.
_INPUT_DIMS: Mapping[str, int] = {**INPUT_DIMS, **dict.fromkeys(("router", *EXPERTS), 1)}
