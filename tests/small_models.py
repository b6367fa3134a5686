"""Two-layer random models of every family, and the parts of a run built from them."""

import functools

import jax
import numpy as np
import optax
from transformers import AutoTokenizer

from jgrpo import algo
from jgrpo.config import MeshConfig
from jgrpo.learner.step import Learner
from jgrpo.models import decoder
from jgrpo.models.architecture import from_hf, logical_axes
from jgrpo.parallel.mesh import make_mesh
from jgrpo.parallel.rules import param_shardings
from jgrpo.types import Prompts

VOCAB = 56
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
CONFIGS = {
    "llama": SIZES
    | {
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "llama_tied": SIZES | {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": SIZES | {"model_type": "qwen2"},
    "qwen3": SIZES | {"model_type": "qwen3"},
}


@functools.cache
def model(family="llama", dtype="float32"):
    """Architecture, structure and weights; the weights are far from their initial scale."""
    arch = from_hf(CONFIGS[family])
    graphdef, params = decoder.build(arch, dtype=dtype, seed=1)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return arch, graphdef, jax.tree.unflatten(structure, noisy)


@functools.cache
def mesh(devices=1, fsdp=1):
    return make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:devices])


def learner(
    family="llama",
    *,
    method=None,
    optimizer=None,
    devices=1,
    fsdp=1,
    dtype="float32",
    **settings,
):
    """A learner, by default of plain GRPO and plain gradient descent: its step is the gradient."""
    arch, graphdef, params = model(family, dtype)
    where, shapes = mesh(devices, fsdp), jax.eval_shape(lambda: params)
    return Learner(
        graphdef=graphdef,
        method=method or algo.method("grpo", penalty="none", kl_coef=0.0),
        optimizer=optimizer or optax.sgd(1.0),
        mesh=where,
        shapes=shapes,
        shardings=param_shardings(where, logical_axes(arch), shapes),
        **settings,
    )


@functools.cache
def tokenizer(root):
    return AutoTokenizer.from_pretrained(root / "jgrpo/assets/tiny")


def prompts(count=8, width=5, seed=0):
    """Prompts of different lengths, padded on the left; the uids are not the row numbers."""
    rng = np.random.default_rng(seed)
    lengths = 1 + np.arange(count) % width
    mask = np.arange(width)[None] >= width - lengths[:, None]
    tokens = np.where(mask, rng.integers(3, VOCAB, mask.shape), 0).astype(np.int32)
    return Prompts(uid=np.arange(count, dtype=np.int32) * 3 + 7, tokens=tokens, mask=mask)


def take(record, rows):
    """Some rows of a record, in the order given."""
    return jax.tree.map(lambda x: np.asarray(x)[rows], record)
