"""GGUF files in: architecture, dequantised weights, and the tokenizer rebuilt from the metadata.

Needs the `gguf` extra. A quantised file is a slightly damaged copy of the model it was made from.
Nothing is written, and tokenizers other than byte-level BPE of the kinds in `_PRE_TOKENIZERS` are
refused: load the Hugging Face directory instead.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jgrpo.models import hf
from jgrpo.models.architecture import FAMILIES, Architecture, RopeScaling
from jgrpo.models.decoder import Params

# The gguf package's token_type: control tokens and tokens that the model's maker added.
_SPECIAL_TYPES = (3, 4)


def load(path: Path, param_dtype: str) -> tuple[Architecture, Params, PreTrainedTokenizerFast]:
    """Reads everything a GGUF file holds of a model.

    Args:
      path: the file.
      param_dtype: precision of the dequantised weights.

    Returns:
      Architecture, parameters (numpy), and the tokenizer with its special tokens and chat template.

    Raises:
      ImportError: if the `gguf` package is missing.
      ValueError: for architectures, RoPE scalings or tokenizers that are not supported.
    """
    from_gguf, metadata, tensors = _open(path)
    arch = _architecture(metadata, tensors, path.name)

    def read(name: str) -> Float[np.ndarray, "..."]:
        tensor = tensors[name]
        value = from_gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # llama.cpp stores the rotated pairs of Llama's queries and keys side by side.
        if arch.family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = arch.num_heads if "q_proj" in name else arch.num_kv_heads
            value = value.reshape(heads, arch.head_width // 2, 2, -1).swapaxes(1, 2)
            value = value.reshape(heads * arch.head_width, -1)
        return value

    params = hf.assemble(arch, names=tensors, read=read, param_dtype=param_dtype, source=path.name)
    return arch, params, _tokenizer(metadata, path.name)


def architecture(path: Path) -> Architecture:
    """The architecture of a GGUF file, without reading its weights; raises as `load` does."""
    _, metadata, tensors = _open(path)
    return _architecture(metadata, tensors, path.name)


def _open(path: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The gguf package, the file's metadata, and its tensors by Hugging Face name."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f"reading {path.name} needs: pip install 'jgrpo[gguf]'") from error
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a whole GGUF file: {error}") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return gguf, metadata, {_hf_name(tensor.name): tensor for tensor in reader.tensors}


def _architecture(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], source: str
) -> Architecture:
    """The sizes, from the metadata keys that start with the architecture's name."""
    family_name = metadata["general.architecture"]
    if family_name not in FAMILIES:
        raise ValueError(
            f"{source}: architecture {family_name!r} is not supported; known: {sorted(FAMILIES)}"
        )
    if "rope_freqs.weight" in tensors:
        raise ValueError(
            f"{source}: RoPE frequencies stored as a tensor (Llama 3.x) are not supported; "
            "load the Hugging Face directory instead"
        )
    family = FAMILIES[family_name]

    def field(name: str, default: Any = None) -> Any:
        value = metadata.get(f"{family_name}.{name}", default)
        if value is None:
            raise ValueError(f"{source}: the metadata lacks {family_name}.{name}")
        return value

    d_model, heads = field("embedding_length"), field("attention.head_count")
    return Architecture(
        family=family_name,
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        d_model=d_model,
        num_layers=field("block_count"),
        num_heads=heads,
        num_kv_heads=field("attention.head_count_kv", heads),
        head_width=field("attention.key_length", d_model // heads),
        ffn_width=field("feed_forward_length"),
        rope_theta=float(field("rope.freq_base", 10000.0)),
        rope_scaling=_rope_scaling(field, source),
        norm_eps=_shortest(field("attention.layer_norm_rms_epsilon")),
        tied_embeddings="lm_head.weight" not in tensors,
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        max_positions=field("context_length"),
    )


def _rope_scaling(field: Callable[..., Any], source: str) -> RopeScaling | None:
    kind = field("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(field("rope.scaling.factor")))
    raise ValueError(f"{source}: rope.scaling.type={kind!r} is not supported; known: none, linear")


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to this float32: metadata holds 1e-5 as 9.99999975e-06."""
    return float(str(np.float32(value)))


def _hf_name(name: str) -> str:
    """Hugging Face's name of a tensor; an unknown one is kept, and refused when assembling."""
    if name in _TOP:
        return _TOP[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _LAYER:
        return name
    return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"


def _tokenizer(metadata: Mapping[str, Any], source: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE from the file's tokens and merges, with its chat template."""
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "")
    if model != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise ValueError(
            f"{source}: tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; known: "
            f"'gpt2' with {sorted(_PRE_TOKENIZERS)}; load the Hugging Face directory instead"
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    normalizer, tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in _SPECIAL_TYPES
        ]
    )
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {
        ours: metadata.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in names.items()
    }
    special = {f"{name}_token": tokens[index] for name, index in ids.items() if index is not None}
    rebuilt = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )
    rebuilt.chat_template = metadata.get("tokenizer.chat_template")
    return rebuilt


_TOP: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Name in the file -> (normalizer or None, pre-tokenizer).
_PRE_TOKENIZERS: Mapping[str, tuple[Any, Any]] = {
    "smollm": (
        None,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
    ),
    "qwen2": (
        normalizers.NFC(),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
}
