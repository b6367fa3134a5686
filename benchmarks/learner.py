"""Times two forms of the learner alone on the same completions, in turns.

    .venv/bin/python benchmarks/learner.py --vocab 8192 --prompts 4 --group 16 --prompt-len 512 \
        --new-tokens 256 --lengths geometric:48

--turns says what differs: packed and padded rows (the default), a loop over the layers and a scan,
or the measurement of entropies. Each step draws new lengths; both learners get the same batch, host
work included. All programs are compiled before. Prints one JSON line: useful (trained) tokens/s of
both, and the median over the steps of the ratio of their times.
"""

import argparse
import os
import statistics
import time
from typing import Any

import jax
import numpy as np
from step import SHAPE, arguments, build, print_line, random_batch

from jgrpo.buckets import bucket
from jgrpo.learner.packing import pack
from jgrpo.learner.step import Learner
from jgrpo.pages import with_kept_pages
from jgrpo.types import Batch, TrainState

TURNS: dict[str, dict[str, dict[str, Any]]] = {
    "packing": {"packed": {"packing": True}, "padded": {}},
    "layers": {"looped": {"unstack": True}, "scanned": {"unstack": False}},
    "entropy": {"without": {"log_entropy": False}, "with": {"log_entropy": True}},
}


def draw_lengths(words: str, shape: tuple[int, int], limit: int, seed: int) -> np.ndarray:
    """Lengths of the completions [P, G].

    Args:
      words: `fixed` (all at the limit) or `geometric:MEAN` (cut off at the limit).
      shape: P and G.
      limit: most tokens of a completion.
      seed: of the draws.

    Raises:
      ValueError: for other words.
    """
    kind, _, mean = words.partition(":")
    if kind == "fixed" and not mean:
        return np.full(shape, limit)
    if kind != "geometric" or not mean:
        raise ValueError(f"--lengths must be fixed or geometric:MEAN, got {words!r}")
    return np.minimum(np.random.default_rng(seed).geometric(1 / float(mean), shape), limit)


def timed(learner: Learner, state: TrainState, batch: Batch) -> tuple[TrainState, float]:
    """The next state, and seconds until it is there."""
    begin = time.perf_counter()
    state, metrics = learner.update(state, batch)
    jax.block_until_ready((state.params, metrics))
    return state, time.perf_counter() - begin


def summary(
    args: argparse.Namespace,
    batches: list[Batch],
    times: dict[str, list[float]],
    learners: dict[str, Learner],
) -> dict[str, Any]:
    """What is reported of the timed steps."""
    useful = sum(int(batch.mask.sum()) for batch in batches)
    (first, quick), (second, slow) = times.items()
    ratios = [b / a for a, b in zip(quick, slow, strict=True)]
    per_bin = args.microbatch_completions
    packed = [
        learners[first].packing and pack(batch, devices=1, microbatch_completions=per_bin)
        for batch in batches
    ]
    report: dict[str, Any] = {"turns": args.turns, "lengths": args.lengths}
    for name in (first, second):
        report[f"useful_tok_s_{name}"] = useful / sum(times[name])
        report[f"learn_s_{name}"] = statistics.median(times[name])
        report[f"programs_{name}"] = learners[name].compiled_updates
    return report | {
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "packed_steps": sum(map(bool, packed)),
        "steps": args.steps,
        "loadavg_after": os.getloadavg()[0],
        "logp_chunk_tokens": learners[first].logp_chunk_tokens,
        "dtype": args.dtype,
        "jax": jax.__version__,
        "devices": [str(device) for device in jax.devices()],
        "threads": os.cpu_count(),
        "shape": {name.replace("-", "_"): vars(args)[name.replace("-", "_")] for name in SHAPE},
    }


def main() -> None:
    """Runs the steps and prints the report."""
    args = arguments(
        ("--lengths", {"default": "fixed"}),
        ("--remat", {"choices": ("none", "full", "dots"), "default": "none"}),
        ("--microbatch-completions", {"type": int, "default": 0}),
        ("--turns", {"choices": tuple(TURNS), "default": "packing", "help": "what differs"}),
    )
    settings = {"remat": args.remat, "microbatch_completions": args.microbatch_completions}
    learners, states = {}, {}
    for name, differs in TURNS[args.turns].items():
        _, learners[name], model = build(args, **settings, **differs)
        states[name] = learners[name].init(model["initial"])
    shape = (args.prompts, args.group)
    drawn = [draw_lengths(args.lengths, shape, args.new_tokens, i) for i in range(args.steps)]
    batches = [
        random_batch(
            args,
            next(iter(learners.values())).method,
            lengths,
            width=min(bucket(int(lengths.max())), args.new_tokens),
            seed=seed,
        )
        for seed, lengths in enumerate(drawn)
    ]
    before = os.getloadavg()[0]
    times: dict[str, list[float]] = {name: [] for name in learners}
    for turn in range(1 + args.warmup):  # first every program, then to get warm
        for batch in batches[: args.steps if turn == 0 else 1]:
            for name, learner in learners.items():
                states[name], _ = timed(learner, states[name], batch)
    for number, batch in enumerate(batches):
        order = list(learners) if number % 2 else list(learners)[::-1]
        for name in order:
            states[name], seconds = timed(learners[name], states[name], batch)
            times[name].append(seconds)
    report = settings | summary(args, batches, times, learners) | {"loadavg_before": before}
    print_line(report)


if __name__ == "__main__":
    with_kept_pages()
    main()
