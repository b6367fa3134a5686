"""What a model looks like, without weights: sizes, the parameter table, Hugging Face config.json.

Letters: V vocabulary, L layers, D model width, H query heads, K key/value heads, E head width,
F feed-forward width. Nothing here reads files (`hf.py`, `gguf.py`) or computes with arrays.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

Axes: TypeAlias = tuple[str, ...]
AxesTree: TypeAlias = dict[str, Any]
"""A nested dict with the structure of the parameters and a tuple of axis names at each leaf."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    Attributes:
      kind: "linear" divides every frequency by `factor`; "llama3" divides the low ones, keeps the
        high ones, and interpolates between (Llama 3.1, arXiv:2407.21783).
      factor: the stretch.
      low_freq_factor: llama3: wavelengths above `original_max_positions / low_freq_factor` stretch.
      high_freq_factor: llama3: those below `original_max_positions / high_freq_factor` stay.
      original_max_positions: llama3: context of the pretraining before the stretch.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes and switches of one decoder; hashable, so that it can be static under `jit`.

    Attributes:
      family: Hugging Face `model_type` this model is read from and written as.
      vocab_size: rows of the embedding.
      d_model: width of the residual stream.
      num_layers: number of blocks.
      num_heads: query heads.
      num_kv_heads: key/value heads; divides `num_heads`.
      head_width: width of one head; even.
      ffn_width: hidden width of the gated feed-forward layer (that of no layer, with experts).
      rope_theta: base of the rotary frequencies.
      rope_scaling: stretch of the rotary frequencies, or None.
      norm_eps: epsilon of every RMS norm.
      tied_embeddings: the LM head is the embedding.
      qk_norm: RMS norm of every query and key head (Qwen3).
      qkv_bias: bias on query, key and value projections (Qwen2).
      max_positions: longest context the weights are meant for, in tokens.
      num_experts: feed-forwards of a layer, of which a router picks some for each token; 0: there
        is one, without a router.
      experts_per_token: how many it picks.
      expert_width: hidden width of each.
      norm_topk: the weights of the picked ones are scaled to add up to 1.
    """

    family: str
    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffn_width: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tied_embeddings: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    max_positions: int = 2048
    num_experts: int = 0
    experts_per_token: int = 0
    expert_width: int = 0
    norm_topk: bool = False

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is not supported; known: {sorted(FAMILIES)}")
        if FAMILIES[self.family].experts != (self.num_experts > 0):
            raise ValueError(f"family {self.family!r} cannot have num_experts={self.num_experts}")
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} must be from 1 to "
                f"num_experts={self.num_experts}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} must be even: RoPE rotates pairs")

    @property
    def active_ffn_width(self) -> int:
        """Hidden units of a layer's feed-forwards that one token passes."""
        return self.experts_per_token * self.expert_width if self.num_experts else self.ffn_width


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    """What a `model_type` implies: the fixed switches and the class transformers loads it with."""

    hf_class: str
    qk_norm: bool
    qkv_bias: bool
    head_width: int | None
    max_positions: int
    experts: bool = False


def logical_axes(arch: Architecture) -> AxesTree:
    """The parameter table: every parameter by name, with the meaning of each of its dimensions.

    Args:
      arch: the model; decides which optional parameters exist.

    Returns:
      A nested dict with the structure of the parameters; leaves are tuples of "layers", "vocab",
      "model" ("ids" and "embed" in the embedding, which is looked up and not multiplied), "heads",
      "kv_heads", "head", "ffn", "experts", "expert_ffn". Shapes, initialisation and sharding
      follow it.
    """
    layer: dict[str, Axes] = {
        "attn_norm": ("model",),
        "q": ("model", "heads", "head"),
        "k": ("model", "kv_heads", "head"),
        "v": ("model", "kv_heads", "head"),
        "o": ("heads", "head", "model"),
        "mlp_norm": ("model",),
    }
    if arch.num_experts:
        layer |= {
            "router": ("model", "experts"),
            "experts_gate": ("experts", "model", "expert_ffn"),
            "experts_up": ("experts", "model", "expert_ffn"),
            "experts_down": ("experts", "expert_ffn", "model"),
        }
    else:
        layer |= {"gate": ("model", "ffn"), "up": ("model", "ffn"), "down": ("ffn", "model")}
    if arch.qk_norm:
        layer |= {"q_norm": ("head",), "k_norm": ("head",)}
    if arch.qkv_bias:
        layer |= {
            "q_bias": ("heads", "head"),
            "k_bias": ("kv_heads", "head"),
            "v_bias": ("kv_heads", "head"),
        }
    tree: AxesTree = {
        "embed": ("ids", "embed"),
        "final_norm": ("model",),
        "layers": {name: ("layers", *axes) for name, axes in layer.items()},
    }
    if not arch.tied_embeddings:
        tree["lm_head"] = ("vocab", "model")
    return tree


def axis_sizes(arch: Architecture) -> dict[str, int]:
    """Length of each axis named by `logical_axes`."""
    return {
        "layers": arch.num_layers,
        "vocab": arch.vocab_size,
        "ids": arch.vocab_size,
        "embed": arch.d_model,
        "model": arch.d_model,
        "heads": arch.num_heads,
        "kv_heads": arch.num_kv_heads,
        "head": arch.head_width,
        "ffn": arch.ffn_width,
        "experts": arch.num_experts,
        "expert_ffn": arch.expert_width,
    }


def num_params(arch: Architecture) -> int:
    """Number of weights, a tied LM head counted once."""
    sizes = axis_sizes(arch)

    def count(tree: AxesTree) -> int:
        return sum(
            count(leaf) if isinstance(leaf, dict) else math.prod(sizes[axis] for axis in leaf)
            for leaf in tree.values()
        )

    return count(logical_axes(arch))


def from_hf(config: Mapping[str, Any]) -> Architecture:
    """Reads the fields of a Hugging Face `config.json`, in the old and the new spelling of RoPE.

    Args:
      config: the parsed JSON object.

    Returns:
      The architecture.

    Raises:
      ValueError: naming the key and value, if a key is missing or asks for what is not modelled.
    """
    family_name = config.get("model_type")
    if not isinstance(family_name, str) or family_name not in FAMILIES:
        raise ValueError(
            f"config.json: model_type={family_name!r} is not supported; known: {sorted(FAMILIES)}"
        )
    family = FAMILIES[family_name]
    _refuse_unmodelled(config)
    missing = [key for key in _REQUIRED if config.get(key) is None]
    if missing:
        raise ValueError(f"config.json: missing {', '.join(missing)}")
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or family.head_width or config["hidden_size"] // heads
    theta, scaling = _rope_from_hf(config)
    return Architecture(
        family=family_name,
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_width=head_width,
        ffn_width=config["intermediate_size"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        max_positions=config.get("max_position_embeddings") or family.max_positions,
        **(_experts_from_hf(config) if family.experts else {}),
    )


def to_hf(arch: Architecture) -> dict[str, Any]:
    """The `config.json` from which `from_hf`, transformers, vLLM and SGLang read this model.

    RoPE is written in the old spelling (`rope_theta`, `rope_scaling`), which every reader knows.
    """
    config: dict[str, Any] = {
        "architectures": [FAMILIES[arch.family].hf_class],
        "model_type": arch.family,
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.d_model,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_width,
        "intermediate_size": arch.ffn_width,
        "hidden_act": "silu",
        "rms_norm_eps": arch.norm_eps,
        "rope_theta": arch.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": arch.tied_embeddings,
        "max_position_embeddings": arch.max_positions,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if arch.num_experts:
        config |= {keys[0]: getattr(arch, name) for name, keys in _EXPERTS.items()}
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    scaling = arch.rope_scaling
    if scaling is not None:
        config["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            config["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
    return config


def _refuse_unmodelled(config: Mapping[str, Any]) -> None:
    """Raises for switches that would change the forward pass and that the decoder does not have."""
    for key, allowed in _ONLY.items():
        value = config.get(key)
        if value is not None and value != allowed:
            raise ValueError(f"config.json: {key}={value!r} is not supported; only {allowed!r} is")
    for layer, kind in enumerate(config.get("layer_types") or ()):
        if kind != "full_attention":
            raise ValueError(
                f"config.json: layer_types[{layer}]={kind!r} is not supported; "
                "only 'full_attention' is"
            )


def _experts_from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Architecture` about experts."""
    found = {}
    for name, keys in _EXPERTS.items():
        given = [config[key] for key in keys if config.get(key) is not None]
        if not given and name != "norm_topk":
            raise ValueError(f"config.json: missing {keys[0]}")
        found[name] = given[0] if given else False
    return found


def _rope_from_hf(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling from `rope_parameters` (new) or `rope_theta` with `rope_scaling` (old)."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        value = rope["partial_rotary_factor"]
        raise ValueError(
            f"config.json: partial_rotary_factor={value!r} is not supported; only 1 is"
        )
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=float(rope["factor"]))
    if kind == "llama3":
        return theta, RopeScaling(
            kind="llama3",
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_positions=int(rope["original_max_position_embeddings"]),
        )
    raise ValueError(
        f"config.json: rope_type={kind!r} is not supported; known: default, linear, llama3"
    )


INPUT_DIMS: Mapping[str, int] = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
"""The matrices of a layer: how many of their leading dims are inputs; the rest are outputs."""
EXPERTS = ("experts_gate", "experts_up", "experts_down")
"""The matrices of its experts: the expert leads, then come inputs and outputs."""

FAMILIES: Mapping[str, _Family] = {
    # head_width, max_positions: what transformers assumes where config.json is silent.
    "llama": _Family(
        hf_class="LlamaForCausalLM",
        qk_norm=False,
        qkv_bias=False,
        head_width=None,
        max_positions=2048,
    ),
    "qwen2": _Family(
        hf_class="Qwen2ForCausalLM",
        qk_norm=False,
        qkv_bias=True,
        head_width=None,
        max_positions=32768,
    ),
    "qwen3": _Family(
        hf_class="Qwen3ForCausalLM",
        qk_norm=True,
        qkv_bias=False,
        head_width=128,
        max_positions=32768,
    ),
    "qwen3_moe": _Family(
        hf_class="Qwen3MoeForCausalLM",
        qk_norm=True,
        qkv_bias=False,
        head_width=None,
        max_positions=32768,
        experts=True,
    ),
}

# Field of `Architecture` -> the keys that transformers writes and reads it under.
_EXPERTS: Mapping[str, tuple[str, ...]] = {
    "num_experts": ("num_experts", "num_local_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "expert_width": ("moe_intermediate_size",),
    "norm_topk": ("norm_topk_prob",),
}

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)

_ONLY: Mapping[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "pretraining_tp": 1,
    "quantization_config": None,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
