"""A model from a name: the embedded one, a Hugging Face directory or id, or a GGUF file."""

import dataclasses
import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jgrpo.files import read_json
from jgrpo.models import gguf, hf
from jgrpo.models.architecture import Architecture, from_hf
from jgrpo.models.attention import XLA, Attention
from jgrpo.models.decoder import GraphDef, Params, build

_ASSETS = Path(str(resources.files("jgrpo") / "assets"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """All that a run takes from a model path.

    Attributes:
      arch: sizes and switches.
      graphdef: static structure, to be closed over.
      params: weights, on the host (numpy) or fresh (jax), in the structure of `logical_axes`.
      tokenizer: a transformers tokenizer.
      eos_ids: every token that ends a completion, ascending.
      pad_id: the token to fill up with; may equal an end token.
    """

    arch: Architecture
    graphdef: GraphDef
    params: Params
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    pad_id: int


def load(
    path: str,
    *,
    init: Literal["weights", "random"] = "weights",
    seed: int = 0,
    dtype: str = "float32",
    param_dtype: str = "float32",
    attention: Attention = XLA,
) -> LoadedModel:
    """Loads a model and its tokenizer.

    Args:
      path: "tiny" (the embedded model), a local Hugging Face directory, a `.gguf` file, or a
        Hugging Face id such as "Qwen/Qwen3-0.6B", which is downloaded.
      init: "random" takes architecture and tokenizer from `path` and draws fresh weights.
      seed: of the fresh weights.
      dtype: precision of activations and matrix products.
      param_dtype: precision of the weights.
      attention: what computes the attention of prompts and whole completions.

    Raises:
      ValueError: if nothing is found (saying where was looked), or what is found does not fit.
    """
    source = located(path)
    generation: dict[str, Any] = {}
    if source.suffix == ".gguf":
        arch, params, tokenizer = gguf.load(source, param_dtype)
    else:
        arch = hf.load_architecture(source)
        tokenizer = _load_tokenizer(source)
        generation_file = source / "generation_config.json"
        if generation_file.is_file():
            generation = read_json(generation_file)
        params = hf.load_params(source, arch, param_dtype) if init == "weights" else {}
    if len(tokenizer) > arch.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model only {arch.vocab_size}"
        )
    graphdef, _ = build(arch, dtype=dtype, attention=attention)
    if init == "random":
        _, fresh = build(arch, dtype=dtype, seed=seed)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(param_dtype)), fresh)
    eos_ids = _eos_ids(path, tokenizer, generation)
    pad_id: Any = tokenizer.pad_token_id
    return LoadedModel(
        arch=arch,
        graphdef=graphdef,
        params=params,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=eos_ids[0] if pad_id is None else pad_id,
    )


def architecture(path: str) -> Architecture:
    """The architecture alone: no weights are read, and few hub ids need the network.

    Args:
      path: as for `load`.

    Raises:
      ValueError: as `load` does.
    """
    known = _ASSETS / "architectures" / f"{path.replace('/', '--')}.json"
    if known.is_file() and not Path(path).expanduser().exists():
        return from_hf(read_json(known))
    source = located(path)
    return gguf.architecture(source) if source.suffix == ".gguf" else hf.load_architecture(source)


def tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone; of a Hugging Face directory no weights are read.

    Args:
      path: as for `load`.

    Raises:
      ValueError: as `load` does.
    """
    source = located(path)
    return load(path).tokenizer if source.suffix == ".gguf" else _load_tokenizer(source)


def located(path: str) -> Path:
    """The local directory or file behind a model path; downloads a Hugging Face id.

    Args:
      path: as for `load`.

    Raises:
      ValueError: if nothing is found, saying where was looked.
    """
    if path == "tiny":
        return _ASSETS / "tiny"
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.suffix == ".gguf" or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        if local.is_file() and local.suffix == ".gguf":
            return local
        raise ValueError(
            f"model path {path!r}: no such directory or .gguf file (looked at "
            f"{local.absolute()}), and it is neither 'tiny' nor a Hugging Face id 'owner/name'"
        )
    return _download(path, local)


def _download(name: str, local: Path) -> Path:
    """The local copy of a model on the Hugging Face hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"model path {name!r}: no directory {local.absolute()}, and the Hugging Face hub did "
            f"not provide it ({type(error).__name__}); check the name, the network and the access "
            "token, or give a local directory"
        ) from error


def _load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory."""
    if not (directory / "tokenizer_config.json").is_file():
        raise ValueError(f"{directory} has no tokenizer: tokenizer_config.json is missing")
    return AutoTokenizer.from_pretrained(directory)


def _eos_ids(
    path: str, tokenizer: PreTrainedTokenizerBase, generation: dict[str, Any]
) -> tuple[int, ...]:
    """End tokens of the generation config and of the tokenizer together."""
    listed: Any = generation.get("eos_token_id")
    own: Any = tokenizer.eos_token_id
    ids = {*(listed if isinstance(listed, list) else [listed]), own} - {None}
    if not ids:
        raise ValueError(f"{path}: neither the tokenizer nor generation_config.json names an EOS")
    return tuple(sorted(ids))
