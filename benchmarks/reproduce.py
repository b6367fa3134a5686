"""Holds the rollout-side methods to what they claim, and writes tables, plots and verdicts.

    .venv/bin/python benchmarks/reproduce.py --claims ws_grpo g2rpo_a --seeds 0 1 2 3 4 --jobs 2

The claims are records of `claims.py`. All arms of a task begin with the same weights and take the
same prompts, completions, updates and rate as GRPO on it; an arm that draws more tokens than GRPO
is read where it has drawn as many. A run is a file under --out, `TASK_ARM_sSEED.json`, made once
and shared by the claims that ask for it. One that raises, diverges or whose process dies three
times stays in the table as a failure, and the rest goes on; --budget-minutes begins no run that
would not end in time, and the same command goes on later. --recorded makes no run and writes what
there is; --publish puts it into docs/results.md and the files into benchmarks/results/reproduce/.
A file of other settings, base or data is refused. --quick, a few small steps, only shows that the
program runs. Needs the `plots` extra.
"""

import argparse
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from claims import ARMS, BASES, CLAIMS, COMMON, TASKS
from curves import ROOT, rows, write_section
from lessons import digests, write_data
from records import (
    Record,
    checked,
    keep_compiled,
    make_with,
    origin,
    recorded,
    skipped,
    taken,
    taught,
)
from verdicts import LAST, begun, page, plot

from jgrpo import config_io
from jgrpo.algo import METHODS, needs
from jgrpo.config import Config
from jgrpo.files import read_json, write_atomically
from jgrpo.run import train

CONFIGS, RESULTS = ROOT / "configs", ROOT / "benchmarks" / "results" / "reproduce"
PREFERENCE = ("method=ws_preference", "optim.lr=1e-3", "run.steps=20", "eval.every=0")
FEW_PROGRAMS = "rollout.chunk_tokens=144"
QUICK = (
    *("run.steps=2", "eval.every=0", "eval.num_prompts=16", "eval.batch_prompts=16"),
    *("data.num_prompts_per_step=4", "rollout.group_size=4"),
    FEW_PROGRAMS,
)
QUICK_BASE = ("run.steps=3", "optim.warmup_steps=1", "eval.num_prompts=16", FEW_PROGRAMS)


def main() -> None:
    """Makes the runs that are missing, then writes what there is."""
    args = arguments()
    until = time.time() + 60 * args.budget_minutes
    out = (args.out / "quick" if args.quick else args.out).resolve()
    cells = list(dict.fromkeys(cell for name in args.claims for cell in CLAIMS[name].runs))
    keep_compiled(out)
    for task, arm in cells:  # what cannot be trained at all is no result
        load(out, settings(task, arm, 0, args.quick))
    # Seeds outermost: a table cut short has as many of every arm.
    runs = [(*cell, seed) for seed in args.seeds for cell in cells]
    if args.worker is not None:
        work(out, runs, args.quick, args.worker)
        return
    if not args.recorded:
        prepare(out, [task for task, _ in cells], args.quick)
        command = [sys.executable, *sys.argv, "--worker", str(until)]
        make_with(command, args.jobs, len(runs))
    records = [
        checked(path, known(*run, args.quick))
        for run in runs
        if (path := out / f"{stem(*run)}.json").exists()
    ]
    for name in begun(args.claims, records):
        plot(CLAIMS[name], records, out / f"claim_{name}.png")
    text = page(args.claims, records)
    write_atomically(out / "table.md", text + "\n")
    print(text)
    print(f"\n{len(records)} of {len(runs)} runs are recorded; {spent(records)}.")
    if args.publish:
        publish(text, records, out, args)


def work(out: Path, runs: Sequence[tuple[str, str, int]], quick: bool, until: float) -> None:
    """Makes those of some runs that nobody else makes, as long as they end in time.

    Args:
      out: the folder of the program.
      runs: task, arm and seed of each.
      quick: whether they are short.
      until: when the last is to have ended, in seconds since 1970.
    """
    for run in runs:
        with taken(out, stem(*run)) as free:
            there = (out / f"{stem(*run)}.json").exists()
            if free and (there or time.time() + longest(out) < until):
                result(out, *run, quick)


def longest(out: Path) -> float:
    """Seconds that the longest run recorded in a folder took; 0 if there is none."""
    return max((read_json(path)["seconds"] for path in out.glob("*_s*.json")), default=0.0)


def spent(records: Sequence[Record]) -> str:
    """How long some runs took, in words."""
    seconds = sum(record["seconds"] for record in records)
    return f"they took {seconds / 60:.0f} minutes, one after the other"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--claims", nargs="+", default=list(CLAIMS), choices=list(CLAIMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "reproduce")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--quick", action="store_true", help="a few small steps, into OUT/quick")
    parser.add_argument("--recorded", action="store_true", help="make no run")
    parser.add_argument("--publish", action="store_true", help="write into docs/results.md")
    parser.add_argument("--budget-minutes", type=float, default=math.inf, help="begin no run later")
    parser.add_argument("--worker", type=float, help="only make runs, that end by then (internal)")
    return parser.parse_args()


def stem(task: str, arm: str, seed: int) -> str:
    """What a run's file is called."""
    return f"{task}_{arm}_s{seed}"


def settings(task: str, arm: str, seed: int, quick: bool) -> list[str]:
    """The settings of one run on top of the quickstart's; `{out}` is the folder of the program."""
    method, *options = ARMS[arm]
    base = TASKS[task].base
    path = base if base == "tiny" else f"{{out}}/bases/{base}/exported"
    words = [method, *COMMON, *TASKS[task].settings, *options, *(QUICK if quick else ())]
    if "prefix_scores" in needs(METHODS[method.removeprefix("method=")]):
        words.append(f"model.preference={{out}}/runs/{stem(task, arm, seed)}_preference")
    return [*words, f"model.path={path}", f"run.seed={seed}"]


def load(out: Path, words: Sequence[str], config: str = "quickstart.yaml") -> Config:
    """The config of a run."""
    found = [word.replace("{out}", str(out)) for word in words]
    return config_io.load(CONFIGS / config, found)


def prepare(out: Path, tasks: Sequence[str], quick: bool) -> None:
    """Writes the data and trains the bases of some tasks, where they are missing.

    Raises:
      ValueError: if data or a base are there that were made otherwise.
    """
    write_data(out)
    for name in dict.fromkeys(TASKS[task].base for task in tasks if TASKS[task].base in BASES):
        folder, base = out / "bases" / name, BASES[name]
        words = [*base.settings, *(QUICK_BASE if quick else ())]
        made = {"settings": words, "data": digests(words)}
        taught(folder, made, partial(load, out, [*words, f"run.dir={folder}"], base.config))


def known(task: str, arm: str, seed: int, quick: bool) -> Record:
    """What is known of a run before it is made; a record with anything else is of another run."""
    words, base = settings(task, arm, seed, quick), TASKS[task].base
    lessons = list(BASES[base].settings) if base in BASES else []
    facts = {"task": task, "arm": arm, "seed": seed, "settings": words, "base": lessons}
    return facts | {"data": digests([*words, *lessons])}


def result(out: Path, task: str, arm: str, seed: int, quick: bool) -> Record:
    """The record of a run, from its file or from running it."""
    words = settings(task, arm, seed, quick)

    def make(folder: Path) -> Record:
        before = preference(out, words, quick)
        summary = train(load(out, [*words, f"run.dir={folder}"]))
        return measured(folder, summary) | {"tokens_before": before}

    return recorded(out, stem(task, arm, seed), known(task, arm, seed, quick), make)


def preference(out: Path, words: Sequence[str], quick: bool) -> float:
    """Trains the preference model that a run asks for, if it does; the tokens that were drawn."""
    asked = [word.partition("=")[2] for word in words if word.startswith("model.preference=")]
    if not asked:
        return 0.0
    rest = [word for word in words if not word.startswith(("method", "model.preference="))]
    short = ("run.steps=2",) if quick else ()
    train(load(out, [*rest, *PREFERENCE, *short, f"run.dir={asked[0]}"]))
    return sum(map(drawn, rows(Path(asked[0].replace("{out}", str(out))))))


def drawn(row: Record) -> float:
    """Tokens drawn in a step, those of completions that were not trained among them."""
    return row.get("plan/drawn_tokens", row["tokens/completion"])


def measured(folder: Path, summary: Record) -> Record:
    """What is compared of a finished run; one that skipped an update has diverged.

    `curve` has tokens drawn so far and held-out accuracy, `first` the mean outcome of the first
    step, `useful` the share of groups with a gradient (copies in the place of others among them),
    `equal` that of groups of equal rewards, `rewards` the mean of each at the end.
    """
    metrics, before, after = rows(folder), summary["eval_before"], summary["eval_after"]
    tokens = np.cumsum([drawn(row) for row in metrics])
    evaluated = [
        [float(so_far), row["eval/greedy_accuracy"]]
        for so_far, row in zip(tokens, metrics, strict=True)
        if "eval/greedy_accuracy" in row
    ]
    ends = [0.0, before["greedy_accuracy"]], [float(tokens[-1]), after["greedy_accuracy"]]
    equal = np.array([row["reward/zero_variance_fraction"] for row in metrics])
    copied = np.array([row.get("refill/replaced_fraction", 0.0) for row in metrics])
    outcomes = [row["reward/tagged_number/mean"] for row in metrics]
    names = [f"reward/{name}/mean" for name in ("tagged_number", "length", "regex_format")]
    found = {
        "accuracy_before": before["greedy_accuracy"],
        "accuracy": after["greedy_accuracy"],
        "curve": [ends[0], *evaluated, ends[1]],
        "tokens": float(tokens[-1]),
        "length_before": before["length_mean"],
        "length": after["length_mean"],
        "rollout_length": float(
            np.mean([row["completion/length_mean"] for row in metrics[-LAST:]])
        ),
        "first": outcomes[0],
        "reward": float(np.mean(outcomes)),
        "rewards": {
            name.split("/")[1]: float(np.mean([row[name] for row in metrics[-LAST:]]))
            for name in names
            if name in metrics[0]
        },
        "equal": float(equal.mean()),
        "useful": float((1.0 - equal + copied).mean()),
        "updates": sum(row["optim/updates"] for row in metrics),
    }
    return found | origin(folder) | skipped(metrics)


def publish(text: str, records: Sequence[Record], out: Path, args: argparse.Namespace) -> None:
    """Puts tables and plots into docs/results.md, and the files of the runs where they stay."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for record in records:
        name = f"{stem(record['task'], record['arm'], record['seed'])}.json"
        if out != RESULTS:
            shutil.copyfile(out / name, RESULTS / name)
    for name in begun(args.claims, records):
        shutil.copyfile(out / f"claim_{name}.png", ROOT / "docs" / "images" / f"claim_{name}.png")
    commits = ", ".join(sorted({run["commit"] for run in records if "commit" in run})) or "-"
    words = ["--claims", *args.claims, "--seeds", *map(str, args.seeds), "--jobs", str(args.jobs)]
    arms = dict.fromkeys(arm for name in args.claims for _, arm in CLAIMS[name].runs)
    made = (
        f"± is Student's 95 % interval over seeds. Made by `.venv/bin/python "
        f"benchmarks/reproduce.py {' '.join(words)} --publish` at commit {commits}, "
        f"{platform.machine()} with {os.cpu_count()} cores; {spent(records)}. Settings besides "
        f"the quickstart's: `{' '.join(COMMON)}`; of the methods: "
    )
    given = "; ".join(f"{arm} `{' '.join(ARMS[arm])}`" for arm in arms)
    write_section("claims", f"{text}\n\n{made}{given}.")


if __name__ == "__main__":
    main()
