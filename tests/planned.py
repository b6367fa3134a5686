"""A model and a run small enough to plan by hand."""

from pathlib import Path

from jgrpo.config import Config
from jgrpo.config_io import load
from jgrpo.models.architecture import Architecture

ARCH = Architecture(
    family="llama",
    vocab_size=100,
    d_model=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_width=4,
    ffn_width=16,
    tied_embeddings=True,
)


def config(tmp_path: Path, *words: str) -> Config:
    """4 prompts of 16 tokens, 2 completions of 32 each."""
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {path: tiny}\ndata: {task: chain, num_prompts_per_step: 4, max_prompt_tokens: 16}\n"
        "rollout: {group_size: 2, max_completion_tokens: 32}\nrun: {dir: runs/x, steps: 10}\n"
    )
    return load(path, words)
