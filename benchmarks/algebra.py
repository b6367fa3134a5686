"""What the algebra costs: time of `algo.policy_loss` beside a learner step, and its memory.

    .venv/bin/python benchmarks/algebra.py --methods grpo gspo gmpo

Learner steps and calls of jit(value_and_grad(policy_loss)) take turns in one process, at the batch
of the asked shape (by default `small`: 64 completions of 64 tokens), so that a busy machine slows
both. The share is a ratio of medians; it counts the call's own dispatch, which the loss inside of a
step does not pay. Memory is what XLA plans: the peak of temporaries of the compiled program, in
units of one float32 array [B, T]. Prints one JSON line.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from step import arguments, build, random_batch

from jgrpo import algo
from jgrpo.pages import with_kept_pages

CALLS = 20
"""Calls of the loss for each learner step: their median is taken, so one is not enough."""


def arrays(rows: int, width: int) -> dict[str, np.ndarray]:
    """Everything that a loss may want, all positions trained."""
    draw = np.random.default_rng(0)
    old = -draw.exponential(size=(rows, width)).astype(np.float32)
    near = lambda size: old + size * draw.normal(size=old.shape).astype(np.float32)  # noqa: E731
    return {
        "logp": near(0.1),
        "old_logp": old,
        "ref_logp": near(0.2),
        "behavior_logp": near(0.01),
        "entropy": -old,
        "entropy_mask": old < -1,
        "segments": np.arange(width)[None] // 8 * np.ones((rows, 1), np.int32),
        "mask": np.ones(old.shape, bool),
        "advantages": draw.normal(size=old.shape).astype(np.float32),
    }


def program(m: algo.Method) -> Callable[[dict[str, np.ndarray]], Any]:
    """Value, metrics and gradient of the method's loss; weights come in, as in a learner step."""

    def loss(logp: jax.Array, rest: dict[str, jax.Array]) -> Any:
        return algo.policy_loss(m, logp, **rest)

    def call(given: dict[str, jax.Array]) -> Any:
        rest = {name: x for name, x in given.items() if name != "logp"}
        return jax.value_and_grad(loss, has_aux=True)(given["logp"], rest)

    return jax.jit(call)


def given_to(m: algo.Method, rows: int, width: int) -> dict[str, np.ndarray]:
    """The arrays that the method asks for, and the weights and shares of the whole batch."""
    wanted = algo.needs(m) | {"logp", "old_logp", "mask", "advantages"}
    found = {name: x for name, x in arrays(rows, width).items() if name in wanted}
    found["weights"] = np.asarray(algo.token_weights(m, found["mask"]))
    found["token_share"] = found["mask"] / np.float32(rows * width)
    return found


def temporaries(m: algo.Method, rows: int, width: int) -> float:
    """Peak of the compiled loss's temporaries, in arrays of [rows, width] float32."""
    compiled = jax.jit(program(m)).lower(given_to(m, rows, width)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes / (4 * rows * width)


def timed(call: Callable[[], Any]) -> float:
    """Seconds until the results are there."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def main() -> None:
    """Times the loss of each method between learner steps, and asks XLA for its memory."""
    args = arguments(("--methods", {"nargs": "+", "default": list(algo.METHODS)}))
    methods = {name: algo.METHODS[name] for name in args.methods}
    _, learner, model = build(args)
    state, lengths = (
        learner.init(model["initial"]),
        np.full((args.prompts, args.group), args.new_tokens),
    )
    part = random_batch(args, learner.method, lengths, args.new_tokens)
    rows, width = args.prompts * args.group, args.new_tokens
    losses = {}
    for name, m in methods.items():
        given = jax.device_put(given_to(m, rows, width))
        losses[name] = (program(m), given)
    times: dict[str, list[float]] = {"learner_step": [], **{name: [] for name in methods}}
    load = os.getloadavg()[0]
    for number in range(args.warmup + args.steps):
        counts = number >= args.warmup
        begin = time.perf_counter()
        state, metrics = learner.update(state, part)
        jax.block_until_ready((state.params, metrics))
        if counts:
            times["learner_step"].append(time.perf_counter() - begin)
        for name, (call, given) in losses.items():
            each = [timed(lambda call=call, given=given: call(given)) for _ in range(CALLS)]
            if counts:
                times[name] += each
    median = {name: statistics.median(values) for name, values in times.items()}
    step = median.pop("learner_step")
    shares = {name: seconds / step for name, seconds in median.items()}
    report = {
        "learner_step_s": round(step, 4),
        "rows": rows,
        "tokens": width,
        "largest_share": round(max(shares.values()), 5),
        "share_of_step": {name: round(share, 5) for name, share in shares.items()},
        "temporary_arrays": {
            name: round(temporaries(m, rows, width), 2) for name, m in methods.items()
        },
        "steps": args.steps,
        "loadavg_before": round(load, 2),
        "loadavg_after": round(os.getloadavg()[0], 2),
        "jax": jax.__version__,
        "devices": [str(device) for device in jax.devices()],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    with_kept_pages()
    main()
