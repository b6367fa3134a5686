"""The learner compiled ahead of time: what its programs count to, and a naive one beside it.

    .venv/bin/python tests/learner_programs.py --write    # rewrite tests/core/learner/counts.json
    .venv/bin/python tests/learner_programs.py --v5e      # memory on a TPU that is not there

Letters: P prompts, G completions per prompt, T completion tokens, V vocabulary.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jgrpo import algo
from jgrpo.config import MeshConfig, OptimConfig
from jgrpo.learner.batch import minibatches, unweighted, with_advantages
from jgrpo.learner.forward import completion_hidden
from jgrpo.learner.optim import make_optimizer
from jgrpo.learner.step import Learner
from jgrpo.models import decoder
from jgrpo.models.architecture import from_hf, logical_axes
from jgrpo.parallel.mesh import make_mesh
from jgrpo.parallel.rules import data_sharding, param_shardings, replicated
from jgrpo.types import Prompts, Rollouts

COUNTS = Path(__file__).parent / "core/learner/counts.json"
METHOD = algo.method("grpo", penalty="none", kl_coef=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and a batch, as in the benchmarks."""

    layers: int = 4
    d_model: int = 256
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 1024
    vocab: int = 512
    prompts: int = 8
    group: int = 8
    prompt_len: int = 64
    new_tokens: int = 64


SHAPES = {
    "small": Shape(),
    "group": Shape(vocab=8192, prompts=4, group=16, prompt_len=512),
}
# For what is run, not only compiled.
TINY = Shape(layers=1, d_model=32, heads=2, ffn=64, vocab=64, prompts=4, prompt_len=16)
# The head is nearly all of it, so that it compiles in seconds.
LARGE_VOCABULARY = Shape(
    layers=1,
    d_model=64,
    heads=1,
    kv_heads=1,
    ffn=64,
    vocab=151_936,
    prompts=2,
    group=4,
    prompt_len=16,
    new_tokens=1024,
)


def build(shape: Shape, devices=None, **settings) -> Learner:
    """A learner of shapes alone: it compiles, and has no weights."""
    arch = from_hf(
        {
            "model_type": "qwen3",
            "vocab_size": shape.vocab,
            "hidden_size": shape.d_model,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.d_model // shape.heads,
            "intermediate_size": shape.ffn,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
            "max_position_embeddings": shape.prompt_len + shape.new_tokens,
        }
    )
    graphdef, shapes = decoder.build(arch, dtype="float32")
    mesh = make_mesh(MeshConfig(), devices or jax.devices()[:1])
    return Learner(
        graphdef=graphdef,
        method=METHOD,
        optimizer=make_optimizer(OptimConfig(lr=1e-6), 10),
        mesh=mesh,
        shapes=shapes,
        shardings=param_shardings(mesh, logical_axes(arch), shapes),
        **settings,
    )


def batch_of(shape: Shape, mean_length: float | None = None):
    """Random completions; all at the limit, or of geometric lengths."""
    noise = np.random.default_rng(0)
    lengths = np.full((shape.prompts, shape.group), shape.new_tokens)
    if mean_length:
        lengths = np.minimum(noise.geometric(1 / mean_length, lengths.shape), lengths)
    mask = np.arange(shape.new_tokens) < lengths[..., None]
    tokens = noise.integers(0, shape.vocab, (shape.prompts, shape.prompt_len), dtype=np.int32)
    rollouts = Rollouts(
        prompts=Prompts(
            uid=np.arange(shape.prompts, dtype=np.int32),
            tokens=tokens,
            mask=np.ones(tokens.shape, bool),
        ),
        tokens=noise.integers(0, shape.vocab, mask.shape, dtype=np.int32),
        mask=mask,
        behavior_logp=np.zeros(mask.shape, np.float32),
        finished=np.ones(lengths.shape, bool),
    )
    rewards = noise.random(lengths.shape, dtype=np.float32)
    batch = unweighted(rollouts, np.ones(lengths.shape, bool))
    batch = with_advantages(batch, algo.advantages(METHOD, rewards))
    return minibatches(METHOD, batch, 1, jax.random.key(0))[0]


def compiled_update(learner: Learner, batch):
    """The program of one update, and what arrays it takes: nothing is run or placed."""
    part, _ = learner._laid_out(batch)
    # Bare arrays: `lower` fills its arguments' records with descriptions that are no arrays.
    leaves, structure = jax.tree.flatten(part)
    opt_state = jax.eval_shape(learner.optimizer.init, learner.shapes)

    def update(params, opt_state, arrays):
        return learner._update(params, opt_state, jax.tree.unflatten(structure, arrays))

    return _compile(learner, update, learner.shapes, opt_state, leaves)


def compiled_naive(learner: Learner, batch):
    """One step of gradient descent with all logits and their log-softmax [P, G, T, V] at once."""
    leaves, structure = jax.tree.flatten(batch)

    def loss(params, arrays):
        data = jax.tree.unflatten(structure, arrays)
        hidden, *_ = completion_hidden(learner.graphdef, params, data.prompts, data.tokens)
        laws_PGTV = jax.nn.log_softmax(decoder.logits(params, hidden))
        logp = jnp.take_along_axis(laws_PGTV, data.tokens[..., None], axis=-1)[..., 0]
        rows = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
        return algo.policy_loss(
            METHOD,
            rows(logp),
            old_logp=rows(data.old_logp),
            mask=rows(data.mask),
            advantages=rows(data.advantages),
            weights=rows(data.weights),
        )[0]

    def update(params, opt_state, arrays):
        updates, opt_state = learner.optimizer.update(
            jax.grad(loss)(params, arrays), opt_state, params
        )
        return optax.apply_updates(params, updates), opt_state

    opt_state = jax.eval_shape(learner.optimizer.init, learner.shapes)
    return _compile(learner, update, learner.shapes, opt_state, leaves)


def _compile(learner: Learner, update, params, opt_state, leaves):
    def on(sharding, x):
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)

    arguments = (
        jax.tree.map(lambda x, s: on(s, x), params, learner.shardings),
        jax.tree.map(functools.partial(on, replicated(learner.mesh)), opt_state),
        [on(data_sharding(learner.mesh), x) for x in leaves],
    )
    return jax.jit(update, donate_argnums=(0, 1)).lower(*arguments).compile()


def memory_of_large_vocabulary(devices=None) -> dict[str, int]:
    """Peak scratch bytes of the learner at its default settings and of the naive step."""
    learner = build(LARGE_VOCABULARY, devices)
    batch = batch_of(LARGE_VOCABULARY)
    return {
        "learner": compiled_update(learner, batch).memory_analysis().temp_size_in_bytes,
        "naive": compiled_naive(learner, batch).memory_analysis().temp_size_in_bytes,
    }


def counts() -> dict[str, dict[str, float]]:
    """What the update's programs count to, by shape and layout."""
    found = {}
    for name, shape in SHAPES.items():
        for packing in (False, True):
            batch = batch_of(shape, mean_length=12 if packing else None)
            program = compiled_update(build(shape, packing=packing), batch)
            costs = program.cost_analysis()
            found[f"{name}_{'packed' if packing else 'padded'}"] = {
                "flops": costs["flops"],
                "bytes": costs["bytes accessed"],
                "peak_bytes": program.memory_analysis().temp_size_in_bytes,
            }
    return found


def compiles() -> dict[str, int]:
    """Programs compiled by six updates of a tiny shape, with lengths that repeat and vary."""
    found = {}
    for packing in (False, True):
        learner = build(TINY, packing=packing)
        # Zeros: programs do not depend on weights.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), learner.shapes)
        state = learner.init(zeros)
        for mean in (None, 6, 12, 12, 24, None):
            state, _ = learner.update(state, batch_of(TINY, mean))
        found["packed" if packing else "padded"] = learner.compiled_updates
    return found


def v5e_devices():
    """One chip of a v5e host, for ahead-of-time compilation. Needs libtpu, not a TPU."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[:1]


def main() -> int:
    """Prints or writes what the options ask for, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite counts.json")
    parser.add_argument("--v5e", action="store_true", help="memory on a v5e chip")
    args = parser.parse_args()
    if args.v5e:
        print(json.dumps(memory_of_large_vocabulary(v5e_devices())))
        return 0
    report = {"jax": jax.__version__, "compiles": compiles(), "programs": counts()}
    text = json.dumps(report, indent=2) + "\n"
    if args.write:
        COUNTS.write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    raise SystemExit(main())
