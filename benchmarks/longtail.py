"""What refilling slots is worth when a few completions are much longer than the others.

    .venv/bin/python benchmarks/longtail.py

One queue of prompts is sampled in two ways, taking turns in one process: by slots that take the
next completion when theirs ends, and in waves of as many completions at once, each as long as its
longest. A random model of the shape `group` draws nearly uniform tokens, of which so many end a
completion that lengths are geometric with the asked mean. Both draw the same
tokens (checked; where two lie within rounding of each other, other shapes may draw the other).
Prints one JSON line: useful tokens a second of both, and their ratio.

--profile measures instead what a decode step costs by lanes (each reads the keys of a prompt),
slots and width of the rings, and works out from it what would be reached if nothing ever idled.
"""

import dataclasses
import os
import statistics
import time
from typing import Any

import jax
import numpy as np
from step import arguments, build, print_line, random_prompts

from jgrpo.keys import named_key, root_key, sequence_keys
from jgrpo.models import stack
from jgrpo.pages import with_kept_pages
from jgrpo.rollout import decode
from jgrpo.rollout.engine import Engine
from jgrpo.rollout.meter import Meter
from jgrpo.rollout.sample import Sampling
from jgrpo.types import Prompts

GROUP = ["--vocab=8192", "--prompts=32", "--group=16", "--prompt-len=512", "--new-tokens=256"]
_STEPS = 16


def timed(
    engine: Engine, params: Any, waves: list[Prompts], options: dict[str, Any]
) -> tuple[float, Meter, list[list[int]]]:
    """Seconds, costs and completions of one rollout of each wave, one after another."""
    meter, tokens = Meter(), []
    begin = time.perf_counter()
    for prompts in waves:
        drawn = engine.generate(params, prompts, meter=meter, **options)
        rows = zip(drawn.tokens, drawn.mask, strict=True)
        tokens += [
            t[m].tolist() for group, masks in rows for t, m in zip(group, masks, strict=True)
        ]
    return time.perf_counter() - begin, meter, tokens


def step_ms(engine: Engine, params: Any, prompts: Prompts, slots: int, width: int) -> float:
    """Milliseconds of a decode step with all slots busy: one lane a prompt, rings of a width."""
    lanes, calls = len(prompts.uid), 6
    whole = lambda x: np.full(lanes, x, np.int32)  # noqa: E731
    drawing = decode.Drawing(sampling=Sampling(), eos_ids=engine.eos_ids)
    keys = sequence_keys(root_key(0), prompts.uid, slots)
    start = jax.jit(decode.start, static_argnums=0, static_argnames=("slots", "width", "drawing"))
    advance = jax.jit(
        decode.advance, static_argnums=0, static_argnames=("steps", "drawing"), donate_argnums=2
    )
    orders = (whole(slots), whole(1 << 30))
    params = stack.unstacked(params) if engine.unstack else params
    state, _ = start(
        *(engine.graphdef, params, prompts, keys, whole(0), *orders),
        **{"slots": slots, "width": width, "drawing": drawing},
    )
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        state, drawn = advance(
            engine.graphdef, params, state, *orders, steps=_STEPS, drawing=drawing
        )
        jax.block_until_ready(drawn)
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[2:]) / _STEPS  # the first two compile


def profile(args: Any, engine: Engine, params: Any) -> dict[str, Any]:
    """Costs of a row, of a position of its ring and of a lane's prompt, and what they come to."""
    prompts = random_prompts(args, np.random.default_rng(0))
    few, many = args.slots // args.group, 4 * args.slots // args.group
    narrow, wide = 64, args.new_tokens
    ms = {}
    for lanes, width in ((few, narrow), (few, wide), (many, narrow), (many, wide)):
        asked = jax.tree.map(lambda x, n=lanes: x[:n], prompts)
        slots = args.slots // lanes
        ms[f"{lanes} lanes x {slots} slots, rings of {width}"] = step_ms(
            engine, params, asked, slots, width
        )
    steps = list(ms.values())
    position = (steps[1] - steps[0] + steps[3] - steps[2]) / (2 * args.slots * (wide - narrow))
    lane = (steps[2] - steps[0] + steps[3] - steps[1]) / (2 * (many - few))
    row = (steps[0] - few * lane) / args.slots - narrow * position
    # In waves a slot is busy for `mean` of the steps of its wave's longest; rings grow with these.
    lengths = np.random.default_rng(0).geometric(1 / args.mean, (1000, args.slots))
    lengths = np.minimum(lengths, args.new_tokens)
    longest, useful = lengths.max(1), lengths.sum()
    rings = sum(_STEPS * sum(range(_STEPS, n + _STEPS, _STEPS)) for n in longest.tolist())
    waves = longest.sum() * (args.slots * row + few * lane) + args.slots * rings * position
    ideal = row + lane * many / args.slots + wide * position
    return {
        "step_ms": ms,
        "row_us": 1e3 * row,
        "ring_position_us": 1e3 * position,
        "lane_us": 1e3 * lane,
        "waves_us_a_token": 1e3 * waves / useful,
        "refill_without_idling_us_a_token": 1e3 * ideal,
        "largest_ratio": waves / useful / ideal,
    }


def main() -> None:
    """Runs both in turn and prints the line."""
    args = arguments(
        ("--mean", {"type": int, "default": 48, "help": "mean length in tokens"}),
        ("--slots", {"type": int, "default": 64, "help": "completions decoded at once"}),
        ("--profile", {"action": "store_true", "help": "only measure what a step costs"}),
        defaults=GROUP,
    )
    engine, _, model = build(args)
    if args.profile:
        print_line(profile(args, engine, model["initial"]) | {"threads": os.cpu_count()})
        return
    ends = np.random.default_rng(1).choice(args.vocab, args.vocab // args.mean, replace=False)
    engine = dataclasses.replace(engine, eos_ids=tuple(map(int, ends)))
    refilling = dataclasses.replace(engine, slots=args.slots)
    engine = dataclasses.replace(engine, narrow=False)
    prompts = random_prompts(args, np.random.default_rng(0))
    size = args.slots // args.group
    starts = range(0, args.prompts, size)
    waves = [jax.tree.map(lambda x, i=i: x[i : i + size], prompts) for i in starts]
    options = {
        "key": named_key(root_key(0), 0),
        "group_size": args.group,
        "max_tokens": args.new_tokens,
        "sampling": Sampling(),
    }
    found: dict[str, list[tuple[float, Meter]]] = {"refill": [], "waves": []}
    load, drawn, equal = os.getloadavg()[0], [], 0.0
    for _ in range(args.warmup + args.steps):
        seconds, meter, drawn = timed(refilling, model["initial"], [prompts], options)
        found["refill"].append((seconds, meter))
        seconds, meter, same = timed(engine, model["initial"], waves, options)
        found["waves"].append((seconds, meter))
        equal = float(np.mean([a == b for a, b in zip(drawn, same, strict=True)]))
        assert equal > 0.9, f"refilling changed what is drawn: {equal:.0%} equal"
    lengths = np.array([len(completion) for completion in drawn])
    report: dict[str, Any] = {
        "completions": lengths.size,
        "mean_length": float(lengths.mean()),
        "equal": float(equal),
    }
    report["longest"] = int(lengths.max())
    for name, runs in found.items():
        seconds = statistics.median(one for one, _ in runs[args.warmup :])
        meter = runs[-1][1]
        report[name] = {
            "useful_tok_s": lengths.sum() / seconds,
            "wasted_fraction": meter.waste,
            "prefill_s": meter.prefill_s,
            "decode_s": meter.decode_s,
            "host_s": meter.host_s,
        }
    report["ratio"] = report["refill"]["useful_tok_s"] / report["waves"]["useful_tok_s"]
    report |= {"slots": args.slots, "threads": os.cpu_count(), "loadavg_before": load}
    print_line(report)


if __name__ == "__main__":
    with_kept_pages()
    main()
