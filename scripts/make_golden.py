"""Writes tiny random models and their logits, computed by transformers, for the parity tests.

    python scripts/make_golden.py

Needs torch. The files let `tests/parity/test_golden.py` check every family without it.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

TARGET = Path(__file__).resolve().parents[1] / "tests" / "parity" / "golden"
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Name of the golden model -> (transformers class prefix, config keys beyond SIZES).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16, "rms_norm_eps": 1e-5}),
    "llama_tied": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    ),
    "qwen2": (
        "Qwen2",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2}},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True, "num_key_value_heads": 4}),
}


def make_model(name: str) -> transformers.PreTrainedModel:
    """A model whose norms and biases are random too, so that none of them can be forgotten."""
    prefix, extra = MODELS[name]
    config = getattr(transformers, f"{prefix}Config")(**SIZES | extra)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval().float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            vector = parameter.ndim == 1
            parameter.copy_(parameter + 0.3 * noise if vector else 0.2 * noise)
    model.generation_config.eos_token_id = None
    return model


def make_tokens() -> np.ndarray:
    """Two rows of 24 ids."""
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 24))


def run_model(
    model: transformers.PreTrainedModel, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the tokens, and eight greedy tokens after them."""
    ids = torch.tensor(tokens)
    with torch.no_grad():
        logits = model(ids).logits.numpy()
        greedy = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
    return logits, greedy[:, ids.shape[1] :].numpy()


def main() -> None:
    """Writes a directory per model."""
    for name in MODELS:
        directory = TARGET / name
        shutil.rmtree(directory, ignore_errors=True)
        model = make_model(name)
        tokens = make_tokens()
        logits, greedy = run_model(model, tokens)
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink()
        np.savez(directory / "golden.npz", tokens=tokens, logits=logits, greedy=greedy)
        total = sum(path.stat().st_size for path in directory.iterdir())
        print(f"{directory}: {total:,} bytes")


if __name__ == "__main__":
    main()
