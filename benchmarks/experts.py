"""Holds GSPO and GRPO to what is claimed of them on a mixture of experts.

    .venv/bin/python benchmarks/experts.py --seeds 0 1 2 3 4 --jobs 2

The claim (arXiv:2507.18071): from update to update other experts are taken, so that ratios of
tokens jump and GRPO needs routing replay; those of whole sequences do not, and GSPO needs none.
Here both train a small model of experts with UPDATES updates a step, with the experts that the
routers pick (`measure`: the drift is told), with those of the learner (`r2`) and of the sampler
(`r3`). The model is the embedded one with each feed-forward cut into slices that two experts begin
as (upcycling, arXiv:2212.05055), and trained on worked solutions for a while. A run is a file under
--out, made once; one that fails is counted. --publish puts table and plot into docs/results.md.
Needs the `plots` extra.
"""

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from curves import ROOT, rows, write_section
from numpy import ndarray
from records import (
    Record,
    by,
    checked,
    failures,
    keep_compiled,
    make_with,
    origin,
    plus_minus,
    recorded,
    skipped,
    taken,
    taught,
)
from reproduce import load
from safetensors.numpy import load_file, save_file

from jgrpo.files import write_atomically
from jgrpo.run import train

mpl.use("agg")
import matplotlib.pyplot as plt

TINY = ROOT / "jgrpo" / "assets" / "tiny"
SLICES, COPIES, EACH = 4, 2, 2
"""Parts of a feed-forward, experts that begin as each, experts that a token takes."""
METHODS, REPLAYS, UPDATES, LAST = ("grpo", "gspo"), ("measure", "r2", "r3"), 4, 5
BASE = (
    *("model.init=weights", "data.options.careless=0.55", "model.router_aux_coef=1e-2"),
    *("optim.lr=2e-3", "run.steps=300", "eval.num_prompts=64", "eval.samples_per_prompt=0"),
    *("checkpoint.every=0", "log.samples_every=0"),
)
COMMON = (
    *(f"optim.minibatches={UPDATES}", "data.num_prompts_per_step=16", "rollout.group_size=8"),
    *("eval.num_prompts=256", "eval.batch_prompts=256", "checkpoint.every=0"),
    "log.samples_every=0",
)
SHOWN = {
    "ratio/variance": "variance of the ratio",
    "ratio/clip_fraction": "clipped tokens",
    "grad/norm": "gradient norm",
    "router/differs": "tokens of other experts",
    "reward/mean": "reward",
}
"""What is drawn of every step, and its name."""


def main() -> None:
    """Makes the runs that are missing, then writes what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--rates", nargs="+", default=["3e-4", "1e-3"], help="learning rates")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--base-steps", type=int, default=300, help="supervised steps of the base")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "experts")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--recorded", action="store_true", help="make no run")
    parser.add_argument("--publish", action="store_true", help="write into docs/results.md")
    parser.add_argument("--worker", action="store_true", help="only make runs that nobody makes")
    args = parser.parse_args()
    out = args.out.resolve()
    keep_compiled(out)
    # Seeds outermost: a table cut short has as many of every arm.
    arms = [(rate, method, replay) for rate in args.rates for method in METHODS
            for replay in REPLAYS]  # fmt: skip
    runs = [(*arm, seed) for seed in args.seeds for arm in arms]
    if args.worker:
        for run in runs:
            with taken(out, stem(*run)) as free:
                if free:
                    result(out, *run, args)
        return
    if not args.recorded:
        prepare(out, args.base_steps)
        make_with([sys.executable, *sys.argv, "--worker"], args.jobs, len(runs))
    records = [
        checked(path, known(*run, args))
        for run in runs
        if (path := out / f"{stem(*run)}.json").exists()
    ]
    write_atomically(out / "table.md", table(records) + "\n")
    for rate in args.rates:
        plot([r for r in records if r["rate"] == rate], out / f"experts_{rate}.png")
    print(table(records))
    if args.publish:
        publish(records, out, args)


def stem(rate: str, method: str, replay: str, seed: int) -> str:
    """What a run's file is called."""
    return f"{method}_{replay}_lr{rate}_s{seed}"


def upcycled(folder: Path) -> None:
    """Writes the embedded model as a mixture of experts.

    Expert e begins as the slice e modulo SLICES of its layer's feed-forward, whose output is
    SLICES times as large: the mean over the slices is then the whole. Routers begin at random.

    References:
      Sparse upcycling, arXiv:2212.05055. Departs: experts are slices, not copies of the whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    config = json.loads((TINY / "config.json").read_text())
    number, width = SLICES * COPIES, config["intermediate_size"] // SLICES
    config |= {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": number,
        "num_experts_per_tok": EACH,
        "moe_intermediate_size": width,
        "norm_topk_prob": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    dense, draw = load_file(TINY / "model.safetensors"), np.random.default_rng(0)
    save_file(dict(_experts(dense, number, width, draw)), folder / "model.safetensors")


def _experts(
    dense: Mapping[str, ndarray], number: int, width: int, draw: np.random.Generator
) -> list[tuple[str, ndarray]]:
    """The arrays of the mixture by name."""
    found = []
    for name, array in dense.items():
        layer, is_mlp, matrix = name.partition(".mlp.")
        if not is_mlp:
            found.append((name, array))
            continue
        for expert in range(number):
            part = slice(expert % SLICES * width, (expert % SLICES + 1) * width)
            own = SLICES * array[:, part] if matrix.startswith("down") else array[part]
            found.append((f"{layer}.mlp.experts.{expert}.{matrix}", np.ascontiguousarray(own)))
        if matrix.startswith("gate"):
            router = draw.normal(0, 0.02, (number, array.shape[1])).astype(np.float32)
            found.append((f"{layer}.mlp.gate.weight", router))
    return found


def prepare(out: Path, steps: int) -> None:
    """Makes the base, if it is not there.

    Raises:
      ValueError: if one is there that was made otherwise.
    """
    folder, words = out / "base", [*BASE, f"run.steps={steps}"]
    more = [f"model.path={out / 'upcycled'}", f"run.dir={folder}"]
    upcycled(out / "upcycled")
    taught(folder, {"settings": words}, partial(load, out, [*words, *more], "sft_tiny.yaml"))


def settings(rate: str, method: str, replay: str, seed: int, steps: int) -> list[str]:
    """The settings of one run on top of the quickstart's; `{out}` is the folder of the program."""
    ends = [f"run.steps={steps}", f"run.seed={seed}", "model.path={out}/base/exported"]
    given = [f"method={method}", "method.penalty=none", "method.kl_coef=0", f"optim.lr={rate}"]
    return [*given, f"model.routing_replay={replay}", *COMMON, *ends]


def known(rate: str, method: str, replay: str, seed: int, args: argparse.Namespace) -> Record:
    """What is known of a run before it is made."""
    words = settings(rate, method, replay, seed, args.steps)
    arm = {"method": method, "replay": replay, "rate": rate, "seed": seed}
    return arm | {"settings": words, "base_steps": args.base_steps}


def result(
    out: Path, rate: str, method: str, replay: str, seed: int, args: argparse.Namespace
) -> Record:
    """The record of a run, from its file or from running it."""
    facts = known(rate, method, replay, seed, args)

    def make(folder: Path) -> Record:
        return measured(folder, train(load(out, [*facts["settings"], f"run.dir={folder}"])))

    return recorded(out, stem(rate, method, replay, seed), facts, make)


def measured(folder: Path, summary: Record) -> Record:
    """What is compared of a finished run; one that skipped an update has diverged."""
    metrics = rows(folder)
    found = {
        "accuracy_before": summary["eval_before"]["greedy_accuracy"],
        "accuracy": summary["eval_after"]["greedy_accuracy"],
        "steps": {name: [row[name] for row in metrics] for name in SHOWN},
    }
    return found | origin(folder) | skipped(metrics)


def table(records: Sequence[Record]) -> str:
    """Means over the seeds that did not fail, with 95 % intervals, and the failures."""
    heads = [name for name in SHOWN if name != "reward/mean"]
    lines = [
        f"| rate | method | routing replay | held-out accuracy | reward, last {LAST} steps | "
        + " | ".join(SHOWN[name] for name in heads)
        + " | failed |",
        "|---" * (6 + len(heads)) + "|",
    ]
    for (rate, method, replay), runs in by(records, "rate", "method", "replay").items():
        good = [run for run in runs if "failure" not in run]
        ends = [float(np.mean(run["steps"]["reward/mean"][-LAST:])) for run in good]
        cells = [plus_minus([run["accuracy"] for run in good]), plus_minus(ends)]
        for name in heads:
            style = ".1e" if name == "ratio/variance" else ".4f"
            cells.append(plus_minus([float(np.mean(run["steps"][name])) for run in good], style))
        words = f"| {rate} | {method} | {replay} | {' | '.join(cells)} |"
        lines.append(f"{words} {failures(runs)} |")
    return "\n".join(lines)


def plot(records: Sequence[Record], path: Path) -> None:
    """Draws what is shown of every step, mean over the seeds: a panel each, a line an arm."""
    figure, panels = plt.subplots(
        1, len(SHOWN), figsize=(3.2 * len(SHOWN), 3), layout="constrained"
    )
    for axes, (name, title) in zip(panels, SHOWN.items(), strict=True):
        for (_, method, replay), runs in by(records, "rate", "method", "replay").items():
            good = [run["steps"][name] for run in runs if "failure" not in run]
            if not good:
                continue
            style = {"measure": "-", "r2": "--", "r3": ":"}[replay]
            color = f"C{METHODS.index(method)}"
            mean = np.mean(good, axis=0)
            axes.plot(np.arange(1, len(mean) + 1), mean, style, color=color,
                      label=f"{method}, {replay}")  # fmt: skip
        axes.set(title=title, xlabel="step")
        if name in ("ratio/variance", "grad/norm"):
            axes.set_yscale("log")
    panels[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def publish(records: Sequence[Record], out: Path, args: argparse.Namespace) -> None:
    """Puts table and plots into docs/results.md, with command, machine and commit."""
    images = []
    for rate in args.rates:
        shutil.copyfile(
            out / f"experts_{rate}.png", ROOT / "docs" / "images" / f"experts_{rate}.png"
        )
        images.append(f"![experts at a rate of {rate}](images/experts_{rate}.png)")
    good = [record for record in records if "failure" not in record]
    commits = ", ".join(sorted({record["commit"] for record in good}))
    before = float(np.mean([record["accuracy_before"] for record in good]))
    words = ["--seeds", *args.seeds, "--rates", *args.rates, "--steps", args.steps]
    lines = [
        *images,
        "",
        table(records),
        "",
        f"Each run: {args.steps} steps of 128 completions and {UPDATES} updates, from {before:.3f};"
        " numbers of steps are means over their updates, then over steps; ± is Student's 95 % "
        "interval over seeds. `measure`: no replay. Made by `.venv/bin/python "
        f"benchmarks/experts.py {' '.join(map(str, words))} --jobs {args.jobs} --publish` at "
        f"commit {commits}, {platform.machine()} with {os.cpu_count()} cores. Settings besides the "
        f"quickstart's: `{' '.join(COMMON)}`; of the base: `{' '.join(BASE)}`.",
    ]
    write_section("experts", "\n".join(lines))


if __name__ == "__main__":
    main()
