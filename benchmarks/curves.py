"""Runs a recipe on some seeds and writes its table and learning curve into docs/results.md.

    .venv/bin/python benchmarks/curves.py configs/quickstart.yaml --seeds 0 1 2

Runs lie under runs/curves/; finished ones are not run again. Needs the `plots` extra.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"


def main() -> None:
    """Trains each seed in a process of its own, then writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("override", nargs="*")
    args = parser.parse_intermixed_args()
    name = Path(args.config).stem
    folders = [ROOT / "runs" / "curves" / f"{name}_seed{seed}" for seed in args.seeds]
    for seed, folder in zip(args.seeds, folders, strict=True):
        setting = [f"run.seed={seed}", f"run.dir={folder}", *args.override]
        subprocess.run([sys.executable, "train.py", args.config, *setting], cwd=ROOT, check=True)
    plot(name, args.seeds, folders)
    write_section(name, section(name, args, folders))


def rows(folder: Path) -> list[dict]:
    """The metrics of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def score(report: dict) -> tuple[float, float | None]:
    """Greedy accuracy and sampled pass@1 of a report, the latter if it was measured."""
    return report["greedy_accuracy"], report["pass_at"].get("1")


def curve(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Held-out scores by the number of finished steps, from the start to the end."""
    summary = json.loads((folder / "summary.json").read_text())
    points = [(0, summary["eval_before"])]
    named: list[tuple[int, dict[str, Any]]] = [
        (
            row["step"] + 1,
            {"greedy": row["eval/greedy_accuracy"], "sampled": row.get("eval/pass@1")},
        )
        for row in rows(folder)
        if "eval/greedy_accuracy" in row
    ]
    points.append((summary["steps"], summary["eval_after"]))
    ends: list[tuple[int, dict[str, Any]]] = []
    for step, report in points:
        greedy, sampled = score(report)
        ends.append((step, {"greedy": greedy, "sampled": sampled}))
    return [ends[0], *named, ends[1]]


def plot(name: str, seeds: list[int], folders: list[Path]) -> None:
    """Draws reward in training and held-out accuracy against steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for seed, folder in zip(seeds, folders, strict=True):
        metrics = rows(folder)
        left.plot([row["step"] + 1 for row in metrics], [row["reward/mean"] for row in metrics])
        points = curve(folder)
        steps = [step for step, _ in points]
        (line,) = right.plot(steps, [v["greedy"] for _, v in points], "o-", label=f"seed {seed}")
        if points[0][1]["sampled"] is not None:
            sampled = [v["sampled"] for _, v in points]
            right.plot(steps, sampled, "s--", color=line.get_color(), label=f"seed {seed}, sampled")
    left.set(xlabel="step", ylabel="mean reward of the step", ylim=(0, 1))
    right.set(xlabel="step", ylabel="held-out accuracy", ylim=(0, 1))
    right.legend()
    figure.suptitle(name)
    (ROOT / "docs" / "images").mkdir(exist_ok=True)
    figure.savefig(ROOT / "docs" / "images" / f"{name}.png", dpi=110)


def section(name: str, args: argparse.Namespace, folders: list[Path]) -> str:
    """The table of one recipe, with command, machine and commit."""
    lines = [
        f"![learning curves of {name}](images/{name}.png)",
        "",
        "| seed | greedy before | greedy after | sampled before | sampled after | mean tokens "
        "before, after | steps | minutes of steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed, folder in zip(args.seeds, folders, strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        before, after = summary["eval_before"], summary["eval_after"]
        cells = []
        for kind in (0, 1):
            values = [score(report)[kind] for report in (before, after)]
            cells += ["-" if value is None else f"{value:.3f}" for value in values]
        minutes = sum(row["time/step_s"] for row in rows(folder)) / 60
        lengths = f"{before['length_mean']:.1f}, {after['length_mean']:.1f}"
        lines.append(
            f"| {seed} | {' | '.join(cells)} | {lengths} | {summary['steps']} | {minutes:.1f} |"
        )
    facts = json.loads((folders[0] / "environment.json").read_text())
    prompts = json.loads((folders[0] / "summary.json").read_text())["eval_before"]["num_prompts"]
    given = " ".join([args.config, *args.override, "--seeds", *map(str, args.seeds)])
    lines += [
        "",
        f"{prompts} held-out prompts. Made by "
        f"`.venv/bin/python benchmarks/curves.py {given}` at commit {facts['commit']}, jax "
        f"{facts['jax']}, {platform.machine()} with {os.cpu_count()} cores.",
    ]
    return "\n".join(lines)


def write_section(name: str, text: str) -> None:
    """Puts the text between the marks of this recipe in docs/results.md."""
    page = PAGE.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in page:
        page += f"\n## {name}\n\n{begin}\n{end}\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    PAGE.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page))


if __name__ == "__main__":
    main()
