"""How close decoding and the learner come to what this machine's matrix products allow.

    .venv/bin/python benchmarks/roofline.py          # decode at batch 64 and learner, shape `wide`

The ceiling of each is measured in the same process: the weight matrices of the model multiplied in
the same shapes and order, and nothing else (no attention, norms, softmax, sampling, optimizer); for
the learner with their gradients. Four timings take turns: both programs, both ceilings. Rates count
the weight products alone (2 x rows x weights, three times that with gradients), so attention and
all else is a loss against the ceiling. The bandwidth figure is what reading weights and caches once
a step would need, against a measured copy. Prints one JSON line.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from step import arguments, build, print_line, random_prompts, rewarded

from jgrpo.keys import named_key, root_key
from jgrpo.models import stack
from jgrpo.pages import with_kept_pages
from jgrpo.rollout.meter import Meter
from jgrpo.rollout.sample import Sampling

WIDE = [
    *("--layers=8", "--d-model=512", "--heads=8", "--kv-heads=4", "--ffn=2048", "--vocab=8192"),
    *("--prompts=4", "--group=16", "--prompt-len=128", "--new-tokens=128"),
]
COPY_BYTES = 256 * 2**20


def products(params: Any, x: Float[Array, "N D"], head_rows: int) -> Float[Array, ""]:
    """The weight products of one pass over N rows, the LM head over `head_rows` of them."""

    def layer(x: Array, weights: Any) -> tuple[Array, None]:
        flat = {n: w.reshape(w.shape[0], -1) for n, w in weights.items() if w.ndim > 1}
        q, k, v = x @ flat["q"], x @ flat["k"], x @ flat["v"]
        mixed = q + jnp.tile(k + v, q.shape[1] // k.shape[1])
        x = x + mixed @ weights["o"].reshape(-1, x.shape[1])
        return x + (x @ flat["gate"] + x @ flat["up"]) @ flat["down"], None

    for weights in params["layers"]:  # unstacked: a scan would copy them first
        x, _ = layer(x, weights)
    return 0.5 * jnp.square(x[:head_rows] @ params["lm_head"].T).sum()  # XLA would fold a plain sum


def flops(params: Any, rows: int, head_rows: int) -> int:
    """Of one forward pass of `products`."""
    layers = sum(w.size for w in jax.tree.leaves(params["layers"]) if w.ndim > 2)
    return 2 * rows * layers + 2 * head_rows * params["lm_head"].size


def seconds(call: Callable[[], Any]) -> float:
    """Time of one call, its results ready."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def main() -> None:
    """Measures and prints the line."""
    args = arguments(defaults=WIDE)
    engine, learner, model = build(args)
    params, rows = model["initial"], args.prompts * args.group
    state = learner.init(params)
    loose = jax.jit(stack.unstacked)(params)
    prompts = random_prompts(args, np.random.default_rng(0))
    draw = partial(engine.generate, group_size=args.group, max_tokens=args.new_tokens)
    rollouts = draw(params, prompts, named_key(root_key(0), 0), sampling=Sampling())
    part = rewarded(learner.method, rollouts, np.random.default_rng(0))
    learned = args.prompts * args.prompt_len + rows * (args.new_tokens - 1)
    scored = rows * args.new_tokens
    vectors = lambda n: jnp.ones((n, args.d_model), params["embed"].dtype)  # noqa: E731
    forward = jax.jit(partial(products, head_rows=rows))
    both = jax.jit(jax.value_and_grad(partial(products, head_rows=scored), argnums=(0, 1)))
    big = jnp.ones(COPY_BYTES // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    found: dict[str, list[float]] = {"decode": [], "decode_ceiling": [], "copy": []}
    found |= {"learner": [], "learner_ceiling": []}
    for _ in range(args.warmup + args.steps):
        meter = Meter()
        draw(params, prompts, named_key(root_key(0), 0), sampling=Sampling(), meter=meter)
        found["decode"].append(meter.decode_s / (args.new_tokens - 1))
        calls = 20
        chain = [partial(forward, loose, vectors(rows))] * calls
        found["decode_ceiling"].append(seconds(lambda c=chain: [f() for f in c]) / calls)
        begin = time.perf_counter()
        state, metrics = learner.update(state, part)
        jax.block_until_ready((state.params, metrics))
        found["learner"].append(time.perf_counter() - begin)
        found["learner_ceiling"].append(seconds(lambda: both(loose, vectors(learned))))
        found["copy"].append(seconds(lambda: copy(big)))
    median = {name: statistics.median(times[args.warmup :]) for name, times in found.items()}
    weights = sum(x.nbytes for x in jax.tree.leaves(params)) - params["embed"].nbytes
    width = args.kv_heads * args.d_model // args.heads * params["embed"].dtype.itemsize
    tokens = args.prompts * args.prompt_len + rows * args.new_tokens / 2
    cache = 2 * args.layers * width * tokens
    report: dict[str, Any] = {}
    for name, work in {
        "decode": flops(params, rows, rows),
        "learner": 3 * flops(params, learned, scored),
    }.items():
        rate, ceiling = work / median[name], work / median[f"{name}_ceiling"]
        report[f"{name}_gflops"] = rate / 1e9
        report[f"{name}_ceiling_gflops"] = ceiling / 1e9
        report[f"{name}_of_ceiling"] = rate / ceiling
    report["decode_gb_s"] = (weights + cache) / median["decode"] / 1e9
    report["copy_gb_s"] = 2 * COPY_BYTES / median["copy"] / 1e9
    report |= {"rows": rows, "dtype": args.dtype, "threads": os.cpu_count()}
    report |= {"loadavg": os.getloadavg()[0], "device": str(jax.devices()[0])}
    report["shape"] = {k: v for k, v in vars(args).items() if k not in ("steps", "warmup", "dtype")}
    print_line(report)


if __name__ == "__main__":
    with_kept_pages()
    main()
