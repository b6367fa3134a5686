"""Trains methods under equal rollouts, updates and seeds, and writes a table and a plot.

    .venv/bin/python benchmarks/compare.py --methods grpo gspo --groups 4 8 --seeds 0 1 --jobs 2

Every run takes COMPLETIONS completions and UPDATES updates a step, at the learning rate of the
quickstart, without a penalty to the reference policy, on the quickstart's task and model. A run is
a file under --out, `METHOD_gG_sSEED.json`; what is there is not run again, and a run that was cut
off continues. A run that raises or diverges is recorded as a failure and counted in the table.
Compiled programs are kept under --out too, so only the first run of a method compiles. With --jobs,
several processes of one thread each take the runs one by one: models this small do not keep two
cores busy. A process that a signal ends (XLA may crash as it writes a program) is started again and
its run begins anew. With --publish, table and plot go into docs/results.md. Needs the `plots`
extra.
"""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from curves import ROOT, rows, write_section
from records import (
    Record,
    by,
    draw_interval,
    failures,
    interval,
    keep_compiled,
    make_with,
    origin,
    plus_minus,
    recorded,
    skipped,
    taken,
)

from jgrpo import config_io
from jgrpo.algo import METHODS, needs
from jgrpo.files import write_atomically
from jgrpo.run import train

mpl.use("agg")
import matplotlib.pyplot as plt

CONFIG = ROOT / "configs" / "quickstart.yaml"
COMPLETIONS, UPDATES, MAX_TOKENS, LAST = 128, 4, 56, 5
COMMON = (
    f"optim.minibatches={UPDATES}",
    "method.penalty=none",
    "method.kl_coef=0",
    f"rollout.max_completion_tokens={MAX_TOKENS}",
    "optim.packing=false",  # one program a method and group size in place of two
    "eval.num_prompts=256",
    "eval.batch_prompts=256",
    "checkpoint.every=0",
    "log.samples_every=0",
)
# What a row leaves to the task, and what would take more rollouts than the others.
FURTHER = {
    "dr_grpo": (f"method.constant_length_tokens={MAX_TOKENS}",),
    "dapo": ("method.overlong_buffer_tokens=8", "method.dynamic_max_rounds=1"),
    "cispo": ("method.overlong_buffer_tokens=8", "method.dynamic_max_rounds=1"),
    "ngrpo": ("method.dynamic_max_rounds=1",),
}


def main() -> None:
    """Makes the runs that are missing, then writes what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", required=True, choices=list(METHODS))
    parser.add_argument("--groups", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "compare")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--publish", action="store_true", help="write into docs/results.md")
    parser.add_argument("--worker", action="store_true", help="only make runs that nobody makes")
    args = parser.parse_args()
    out = args.out.resolve()
    keep_compiled(out)
    for name in args.methods:  # what cannot be trained at all is no result
        for group in args.groups:
            config_io.load(CONFIG, overrides(name, group, 0, args.steps))
    # Seeds outermost: a table cut short has as many of every method.
    runs = [(n, group, seed) for seed in args.seeds for group in args.groups for n in args.methods]
    if args.worker:
        for name, group, seed in runs:
            with taken(out, stem(name, group, seed)) as free:
                if free:
                    result(out, name, group, seed, args.steps)
        return
    if args.jobs > 1:
        make_with([sys.executable, *sys.argv, "--worker"], args.jobs, len(runs))
    records = [result(out, name, group, seed, args.steps) for name, group, seed in runs]
    write_atomically(out / "table.md", table(records) + "\n")
    plot(records, out / "compare.png")
    print(table(records))
    if args.publish:
        publish(records, out, args)


def overrides(name: str, group: int, seed: int, steps: int) -> list[str]:
    """The settings of one run on top of the quickstart's."""
    if COMPLETIONS % (group * UPDATES):
        raise ValueError(f"--groups: {COMPLETIONS} completions are not {UPDATES} parts of {group}s")
    # A method that drops its pivot samples one more than rollout.group_size.
    size = group - ("pivot" in needs(METHODS[name]))
    sizes = [f"rollout.group_size={size}", f"data.num_prompts_per_step={COMPLETIONS // group}"]
    ends = [f"run.steps={steps}", f"run.seed={seed}"]
    return [f"method={name}", *COMMON, *FURTHER.get(name, ()), *sizes, *ends]


def stem(name: str, group: int, seed: int) -> str:
    """What a run's file is called."""
    return f"{name}_g{group}_s{seed}"


def result(out: Path, name: str, group: int, seed: int, steps: int) -> Record:
    """The record of a run, from its file or from running it."""
    settings = overrides(name, group, seed, steps)
    known = {"method": name, "group": group, "seed": seed, "settings": settings}

    def make(folder: Path) -> Record:
        return measured(folder, train(config_io.load(CONFIG, [*settings, f"run.dir={folder}"])))

    return recorded(out, stem(name, group, seed), known, make)


def measured(folder: Path, summary: Record) -> Record:
    """What is compared of a finished run; one that skipped an update has diverged."""
    metrics, after = rows(folder), summary["eval_after"]
    rewards = [row["reward/mean"] for row in metrics]
    found = {
        "accuracy_before": summary["eval_before"]["greedy_accuracy"],
        "accuracy": after["greedy_accuracy"],
        "reward": float(np.mean(rewards[-LAST:])),
        "reward_all": float(np.mean(rewards)),
        "rewards": rewards,
        "length": after["length_mean"],
        "clipped": float(np.mean([row["ratio/clip_fraction"] for row in metrics])),
        "completions": sum(row["sampling/rounds"] for row in metrics) * COMPLETIONS,
        "updates": sum(row["optim/updates"] for row in metrics),
    }
    return found | origin(folder) | skipped(metrics)


def table(records: Sequence[Record]) -> str:
    """Means over the seeds that did not fail, with 95 % intervals, and the failures."""
    lines = [
        f"| method | G | held-out accuracy | reward, last {LAST} steps | reward, all steps |"
        " length | clipped tokens | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, group), runs in by(records, "method", "group").items():
        good = [run for run in runs if "failure" not in run]
        means = ("accuracy", "reward", "reward_all")
        shown = [plus_minus([run[what] for run in good]) for what in means]
        for what, digits in (("length", 1), ("clipped", 4)):
            shown.append(f"{np.mean([run[what] for run in good]):.{digits}f}" if good else "-")
        lines.append(f"| {name} | {group} | {' | '.join(shown)} | {failures(runs)} |")
    return "\n".join(lines)


def plot(records: Sequence[Record], path: Path) -> None:
    """Draws each seed's accuracy, mean and interval: a line a method, a panel a group size."""
    groups = list(dict.fromkeys(record["group"] for record in records))
    names = list(dict.fromkeys(record["method"] for record in records))
    size = (4.5 * len(groups), 1.2 + 0.3 * len(names))
    figure, panels = plt.subplots(
        1, len(groups), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    by_cell = by(records, "method", "group")
    for axes, group in zip(panels[0], groups, strict=True):
        for height, name in enumerate(names):
            runs = [run for run in by_cell.get((name, group), []) if "failure" not in run]
            draw_interval(axes, [run["accuracy"] for run in runs], height)
        axes.set(title=f"G = {group}", xlabel="held-out greedy accuracy", xlim=(0, 1))
        axes.set_yticks(range(len(names)), names)
    panels[0][0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def publish(records: Sequence[Record], out: Path, args: argparse.Namespace) -> None:
    """Puts table and plot into docs/results.md, with command, machine and commit."""
    shutil.copyfile(out / "compare.png", ROOT / "docs" / "images" / "compare.png")
    good = [record for record in records if "failure" not in record]
    commits = ", ".join(sorted({record["commit"] for record in good}))
    before = interval([record["accuracy_before"] for record in good])[0]
    words = ["--methods", *args.methods, "--groups", *args.groups, "--seeds", *args.seeds]
    lines = [
        "![held-out accuracy by method](images/compare.png)",
        "",
        table(records),
        "",
        f"Each run: {args.steps} steps of {COMPLETIONS} completions and {UPDATES} updates, from "
        f"{before:.3f}; ± is Student's 95 % interval over seeds. Made by "
        f"`.venv/bin/python benchmarks/compare.py {' '.join(map(str, words))} --steps "
        f"{args.steps} --publish` at commit {commits}, {platform.machine()} with {os.cpu_count()} "
        f"cores. Settings besides the quickstart's: `{' '.join(COMMON)}`; further "
        + "; ".join(f"{name} `{' '.join(words)}`" for name, words in FURTHER.items())
        + ". G is what is sampled of a prompt: mc_grpo trains one less, and spo, made for one, "
        "takes G. Prompts do not come again, so spo's tracker never leaves its prior.",
    ]
    write_section("compare", "\n".join(lines))


if __name__ == "__main__":
    main()
