"""Two-layer random models of every family, and the parts of a run built from them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import AutoTokenizer

from jgrpo import algo
from jgrpo.config import MeshConfig
from jgrpo.learner.batch import minibatches, unweighted, with_advantages
from jgrpo.learner.step import Learner
from jgrpo.models import decoder
from jgrpo.models.architecture import from_hf, logical_axes
from jgrpo.models.attention import Attention
from jgrpo.models.cache import ring_width
from jgrpo.parallel.mesh import make_mesh
from jgrpo.parallel.rules import param_shardings
from jgrpo.rollout.engine import Engine
from jgrpo.types import Prompts, Rollouts

VOCAB = 56
PLAIN = algo.method("grpo", penalty="none", kl_coef=0.0)
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
# Apart, since its parameters have other names: for tests of what only experts do.
EXPERTS = {
    "qwen3_moe": SIZES
    | {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
}


@functools.cache
def model(family="llama", dtype="float32"):
    """Architecture, structure and weights; the weights are far from their initial scale."""
    arch = from_hf((CONFIGS | EXPERTS)[family])
    graphdef, params = decoder.build(arch, dtype=dtype, seed=1)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return arch, graphdef, jax.tree.unflatten(structure, noisy)


@functools.cache
def structure(family, dtype, where, gathered=False):
    """That of the model on a mesh, as runs have it."""
    arch = from_hf((CONFIGS | EXPERTS)[family])
    attention = Attention(mesh=where)
    return decoder.build(arch, dtype=dtype, attention=attention, gathered=gathered)[0]


@functools.cache
def mesh(devices=1, fsdp=1, expert=1, tensor=1):
    cfg = MeshConfig(fsdp=fsdp, expert=expert, tensor=tensor)
    return make_mesh(cfg, jax.devices()[:devices])


def learner(
    family="llama",
    *,
    method=None,
    optimizer=None,
    devices=1,
    fsdp=1,
    expert=1,
    tensor=1,
    dtype="float32",
    **settings,
):
    """A learner, by default of plain GRPO and plain gradient descent: its step is the gradient."""
    arch, _, params = model(family, dtype)
    where, shapes = mesh(devices, fsdp, expert, tensor), jax.eval_shape(lambda: params)
    return Learner(
        graphdef=structure(family, dtype, where),
        method=method or PLAIN,
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


def completed(prompts, group_size, width, seed=0):
    """Random completions of 1 to `width` tokens for each prompt, all log-probs 0."""
    rng = np.random.default_rng(seed)
    shape = (len(prompts.uid), group_size, 1)
    mask = np.arange(width) < rng.integers(1, width + 1, shape)
    return Rollouts(
        prompts=prompts,
        tokens=rng.integers(3, VOCAB, mask.shape).astype(np.int32),
        mask=mask,
        behavior_logp=np.zeros(mask.shape, np.float32),
        finished=np.ones(shape[:2], bool),
    )


def weighed(drawn, values, method=PLAIN):
    """A batch with given advantages [P, G] and the old log-probs that the rollouts hold."""
    keep = np.ones(drawn.mask.shape[:2], bool)
    given = algo.Advantages(values=jnp.asarray(values, jnp.float32), keep=jnp.asarray(keep))
    batch = with_advantages(unweighted(drawn, keep), given)
    return minibatches(method, batch, 1, jax.random.key(0))[0]


@functools.cache
def off_policy_batch(family="llama", method=PLAIN):
    """8 groups of 4; old log-probs near the policy's, so that some ratios are clipped."""
    drawn, shape = completed(prompts(8), 4, 6), (8, 4)
    rng = np.random.default_rng(3)
    plain = weighed(drawn, np.zeros(shape))
    logp = np.asarray(learner(family).logps(model(family)[2], plain))
    noise = lambda: 0.2 * rng.standard_normal(logp.shape)  # noqa: E731
    near = lambda: np.where(drawn.mask, logp + noise(), 0).astype(np.float32)  # noqa: E731
    drawn = dataclasses.replace(drawn, behavior_logp=near())
    batch = weighed(drawn, rng.standard_normal(shape), method)
    if "ref_logp" in algo.needs(method):
        batch = dataclasses.replace(batch, ref_logp=near())
    return batch


def sampler(root, family="llama", *, devices=1, fsdp=1, expert=1, tensor=1, **settings):
    """An engine of a small model, and its weights where its mesh has them."""
    arch, _, params = model(family)
    where = mesh(devices, fsdp, expert, tensor)
    graphdef = structure(family, "float32", where, gathered=settings.get("gather", True))
    engine = Engine(graphdef=graphdef, mesh=where, tokenizer=tokenizer(root), **settings)
    if devices > 1:
        axes, shapes = logical_axes(arch), jax.eval_shape(lambda: params)
        params = jax.device_put(params, param_shardings(where, axes, shapes))
    return engine, params


def take(record, rows):
    """Some rows of a record, in the order given."""
    return jax.tree.map(lambda x: np.asarray(x)[rows], record)


def extend_in_order(graphdef, params, token, cache, own, offset):
    """One token [P, G] of every completion, the caches filled from their beginning."""
    visible = jnp.arange(ring_width(own))[None, None] <= offset
    hidden, own, _ = decoder.extend(
        graphdef,
        params,
        token,
        cache,
        own,
        at=offset,
        before=jnp.broadcast_to(offset, token.shape),
        visible=jnp.broadcast_to(visible, (*token.shape, visible.shape[-1])),
    )
    return hidden, own
