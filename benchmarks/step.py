"""Times GRPO steps of a random Qwen3 model: rollout and update, as `jgrpo.run` makes them.

    .venv/bin/python benchmarks/step.py --prompts 8 --group 8 --prompt-len 64 --new-tokens 64

Every prompt has exactly --prompt-len tokens and every completion exactly --new-tokens (no token
ends one). Tokens are counted as if each completion carried its prompt, however often the prompt is
really encoded. Prints one JSON line with medians over the timed steps.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jgrpo import algo
from jgrpo.config import MeshConfig, OptimConfig
from jgrpo.keys import named_key, root_key
from jgrpo.learner.batch import minibatches, unweighted, with_advantages
from jgrpo.learner.optim import make_optimizer
from jgrpo.learner.step import Learner
from jgrpo.models import decoder
from jgrpo.models.architecture import from_hf, logical_axes, num_params
from jgrpo.models.load import load
from jgrpo.pages import with_kept_pages
from jgrpo.parallel.mesh import make_mesh
from jgrpo.parallel.rules import param_shardings
from jgrpo.rollout.engine import Engine
from jgrpo.rollout.sample import Sampling
from jgrpo.types import Batch, Prompts, Rollouts

SHAPE = {
    "layers": 4,
    "d-model": 256,
    "heads": 4,
    "kv-heads": 2,
    "ffn": 1024,
    "vocab": 512,
    "prompts": 8,
    "group": 8,
    "prompt-len": 64,
    "new-tokens": 64,
}


def arguments(*more: tuple[str, dict], defaults: Sequence[str] = ()) -> argparse.Namespace:
    """The options that all benchmarked systems share, how many steps are timed, and `more`.

    Args:
      *more: further options, as `add_argument` takes them.
      defaults: options to begin with, which those of the command line override.
    """
    parser = argparse.ArgumentParser()
    for name, default in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps before")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    for name in ("weights", "kv"):
        parser.add_argument(
            f"--{name}", choices=("model", "int8"), default="model", help="sampler's"
        )
    parser.add_argument("--scan", action="store_true", help="scan the layers while decoding too")
    parser.add_argument("--logp-chunk", type=int, default=0, help="tokens; 0: the default")
    for name, option in more:
        parser.add_argument(name, **option)
    return parser.parse_args([*defaults, *sys.argv[1:]])


def build(args: argparse.Namespace, **settings: Any) -> tuple[Engine, Learner, dict]:
    """A random model of the asked shape, with the run's own engine and learner around it.

    Args:
      args: from `arguments`.
      settings: further fields of the learner.
    """
    arch = from_hf(
        {
            "model_type": "qwen3",
            "vocab_size": args.vocab,
            "hidden_size": args.d_model,
            "num_hidden_layers": args.layers,
            "num_attention_heads": args.heads,
            "num_key_value_heads": args.kv_heads,
            "head_dim": args.d_model // args.heads,
            "intermediate_size": args.ffn,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
            "max_position_embeddings": args.prompt_len + args.new_tokens,
        }
    )
    graphdef, params = decoder.build(arch, dtype=args.dtype, seed=0)
    mesh = make_mesh(MeshConfig())
    shapes = jax.eval_shape(lambda: params)
    engine = Engine(
        graphdef=graphdef,
        mesh=mesh,
        tokenizer=load("tiny", init="random").tokenizer,
        eos_ids=(args.vocab,),  # an id that is never drawn: no completion ends early
        dtype=args.dtype,
        weights=args.weights,
        kv=args.kv,
    )
    if args.scan:
        engine = dataclasses.replace(engine, unstack=False)
    if args.logp_chunk:
        settings = {"logp_chunk_tokens": args.logp_chunk} | settings
    learner = Learner(
        graphdef=graphdef,
        method=algo.method("grpo", penalty="none", kl_coef=0.0),
        optimizer=make_optimizer(OptimConfig(lr=1e-6), args.warmup + args.steps),
        mesh=mesh,
        shapes=shapes,
        shardings=param_shardings(mesh, logical_axes(arch), shapes),
        **settings,
    )
    return engine, learner, {"params": num_params(arch), "initial": params}


def random_prompts(args: argparse.Namespace, noise: np.random.Generator) -> Prompts:
    """Prompts of --prompt-len tokens, without padding."""
    tokens = noise.integers(0, args.vocab, (args.prompts, args.prompt_len), dtype=np.int32)
    uid = np.arange(args.prompts, dtype=np.int32)
    return Prompts(uid=uid, tokens=tokens, mask=np.ones(tokens.shape, bool))


def random_batch(
    args: argparse.Namespace, method: algo.Method, lengths: np.ndarray, width: int, seed: int = 0
) -> Batch:
    """A batch of random tokens and rewards.

    Args:
      args: from `arguments`.
      method: gives advantages and weights.
      lengths: of the completions [P, G].
      width: positions of a completion.
      seed: of the draws.
    """
    noise = np.random.default_rng(seed)
    mask = np.arange(width) < lengths[..., None]
    rollouts = Rollouts(
        prompts=random_prompts(args, noise),
        tokens=noise.integers(0, args.vocab, mask.shape, dtype=np.int32),
        mask=mask,
        behavior_logp=np.where(mask, -np.log(args.vocab), 0).astype(np.float32),
        finished=np.ones(lengths.shape, bool),
    )
    return rewarded(method, rollouts, noise)


def rewarded(method: algo.Method, rollouts: Rollouts, noise: np.random.Generator) -> Batch:
    """One minibatch of the rollouts, with random rewards."""
    rewards = noise.random(rollouts.mask.shape[:2], dtype=np.float32)
    batch = unweighted(rollouts, np.ones(rewards.shape, bool))
    batch = with_advantages(batch, algo.advantages(method, rewards))
    return minibatches(method, batch, 1, root_key(0))[0]


def print_line(report: Mapping[str, Any]) -> None:
    """Prints a report as one JSON line, floats to four digits behind the point."""
    rounded = json.loads(json.dumps(report), parse_float=lambda x: round(float(x), 4))
    print(json.dumps(rounded))


def main() -> None:
    """Runs the steps and prints their medians."""
    args = arguments()
    engine, learner, model = build(args)
    state = learner.init(model["initial"])
    noise = np.random.default_rng(0)
    load_before = os.getloadavg()[0]
    times: dict[str, list[float]] = {"rollout_s": [], "learn_s": [], "step_s": [], "cpu_s": []}
    for step in range(args.warmup + args.steps):
        prompts = random_prompts(args, noise)
        begin, cpu = time.perf_counter(), time.process_time()
        rollouts = engine.generate(
            state.params,
            prompts,
            named_key(root_key(0), step),
            group_size=args.group,
            max_tokens=args.new_tokens,
            sampling=Sampling(),
        )
        sampled = time.perf_counter()
        assert rollouts.mask.sum() == args.prompts * args.group * args.new_tokens
        part = rewarded(learner.method, rollouts, noise)
        state, metrics = learner.update(state, part)
        jax.block_until_ready((state.params, metrics))
        end = time.perf_counter()
        for name, seconds in (
            ("rollout_s", sampled - begin),
            ("learn_s", end - sampled),
            ("step_s", end - begin),
            ("cpu_s", time.process_time() - cpu),
        ):
            times[name].append(seconds)
    median = {name: statistics.median(values[args.warmup :]) for name, values in times.items()}
    rows = args.prompts * args.group
    report = {
        "system": "jgrpo",
        "rollout_tok_s": rows * args.new_tokens / median["rollout_s"],
        "learn_tok_s": rows * (args.prompt_len + args.new_tokens) / median["learn_s"],
        **median,
        "loadavg_before": load_before,
        "loadavg_after": os.getloadavg()[0],
        "params": model["params"],
        "rows": rows,
        "dtype": args.dtype,
        "jax": jax.__version__,
        "devices": [str(device) for device in jax.devices()],
        "threads": os.cpu_count(),
        "shape": {name.replace("-", "_"): vars(args)[name.replace("-", "_")] for name in SHAPE},
    }
    print_line(report)


if __name__ == "__main__":
    with_kept_pages()
    main()
