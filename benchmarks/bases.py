"""Measures the weights that the tasks of `claims.py` begin with, before any of them is run.

    .venv/bin/python benchmarks/bases.py --tasks hard --publish

Held-out problems as they are and, on hard, with some help: behind the first half of a solution,
under a hint, behind a careless draft. By these numbers tasks are chosen, not by how an arm does on
them. Data and bases are those of `reproduce.py` under the same --out, and are made if they are
missing; --publish writes the table into docs/results.md.
"""

import argparse
import contextlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from claims import BASES, TASKS
from curves import ROOT, write_section
from lessons import HELP
from records import Record, keep_compiled, origin
from reproduce import load, prepare, settings

from jgrpo.assembly import assemble
from jgrpo.files import read_json
from jgrpo.keys import named_key

SAMPLES = 8
NAMES = {
    "hard_half": "behind the first half of a solution",
    "hard_hint": "under its first step",
    "hard_steps": "under all its steps",
    "hard_draft": "behind a careless solution",
}


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "reproduce")
    parser.add_argument("--quick", action="store_true", help="of OUT/quick, on a few problems")
    parser.add_argument("--publish", action="store_true", help="write into docs/results.md")
    args = parser.parse_args()
    out = (args.out / "quick" if args.quick else args.out).resolve()
    keep_compiled(out)
    prepare(out, args.tasks, args.quick)
    text = "\n".join(table(out, args.tasks, args.quick))
    print(text)
    if args.publish:
        taught = {TASKS[task].base for task in args.tasks} & BASES.keys()
        commits = {origin(out / "bases" / name)["commit"] for name in taught}
        made = (
            f"256 held-out problems, {SAMPLES} samples of each at the temperature of training. "
            f"Made by `.venv/bin/python benchmarks/bases.py --tasks {' '.join(args.tasks)} "
            f"--publish`, bases at commit {', '.join(sorted(commits)) or '-'}, "
            f"{platform.machine()} with {os.cpu_count()} cores."
        )
        write_section("bases", f"{text}\n\n{made}")


def table(out: Path, tasks: Sequence[str], quick: bool) -> list[str]:
    """A line a task and kind of help."""
    lines = [
        "| task | asked | greedy | sampled: pass@1 | pass@8 | greedy tokens | seconds of lessons |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        made = out / "bases" / TASKS[task].base / "made.json"
        taught = f"{read_json(made)['seconds']:.0f}" if TASKS[task].base in BASES else "-"
        for name in ("", *(HELP if task == "hard" else ())):
            found = measured(out, task, name, quick)
            passed, asked = found["pass_at"], NAMES.get(name, "as it is")
            scores = (found["greedy_accuracy"], passed["1"], passed[str(SAMPLES)])
            numbers = " | ".join(f"{score:.3f}" for score in scores)
            lines.append(
                f"| {task} | {asked} | {numbers} | {found['length_mean']:.1f} | {taught} |"
            )
    return lines


def measured(out: Path, task: str, name: str, quick: bool) -> Record:
    """The report on a task's weights, on its held-out problems or those of a file of `HELP`."""
    words = [*settings(task, "grpo", 0, quick), f"eval.samples_per_prompt={SAMPLES}"]
    if name:
        words += [f"data.heldout_path={{out}}/{name}.jsonl", "data.max_prompt_tokens=96"]
    cfg = load(out, words)
    words.append(f"eval.temperature={cfg.rollout.temperature}")
    with contextlib.closing(assemble(load(out, words))) as run:
        key = named_key(run.root, 0, "eval")
        return run.evaluator.evaluate(run.model.params, key).to_json()


if __name__ == "__main__":
    main()
