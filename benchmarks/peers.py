"""Runs TRL, Tunix and jgrpo one after another on the three quoted shapes and compares medians.

    .venv/bin/python benchmarks/peers.py ../shared/bench/peers.sh --runs 3

Waits before each run until the machine is quiet. Writes every line that a system printed to
benchmarks/results/peers_cpu.jsonl, with shape, run and commit, and prints a table in Markdown: the
medians over the runs, and the ratios of ours to the better peer in the same run (median of these).
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

SHAPES = {
    "small": "",
    "wide": "--layers 8 --d-model 512 --heads 8 --kv-heads 4 --ffn 2048 --vocab 8192"
    " --prompts 4 --group 8 --prompt-len 128 --new-tokens 128",
    "group": "--vocab 8192 --prompts 4 --group 16 --prompt-len 512 --new-tokens 64",
}
PEERS = ("trl", "tunix")
RESULTS = Path(__file__).parent / "results" / "peers_cpu.jsonl"


def wait_until_quiet(load: float, patience_s: float = 600) -> None:
    """Returns when the load of the last minute is below `load`, or patience is over."""
    begin = time.monotonic()
    while os.getloadavg()[0] > load and time.monotonic() < begin + patience_s:
        time.sleep(5)


def systems(script: Path, shape: str) -> list[dict]:
    """What each system printed in one run of the script."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        ["bash", script, root, *SHAPES[shape].split()], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def name_of(line: dict) -> str:
    """trl, tunix or jgrpo; each names itself in its own way."""
    return "trl" if "trl" in line else line.get("peer") or line["system"]


def ratios(lines: list[dict]) -> dict[str, float]:
    """Ours over the better peer in one run: R rollout tok/s, L learn tok/s, S steps a second."""
    by_name = {name_of(line): line for line in lines}
    ours, peers = by_name["jgrpo"], [by_name[name] for name in PEERS]
    return {
        "R": ours["rollout_tok_s"] / max(peer["rollout_tok_s"] for peer in peers),
        "L": ours["learn_tok_s"] / max(peer["learn_tok_s"] for peer in peers),
        "S": min(peer["step_s"] for peer in peers) / ours["step_s"],
    }


def table(records: list[dict]) -> str:
    """The Markdown table of all runs recorded."""
    rows = [
        "| shape | TRL R, L | Tunix R, L | jgrpo R, L | R | L | S |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        runs = [record["lines"] for record in records if record["shape"] == shape]
        if not runs:
            continue
        cells = []
        for name in (*PEERS, "jgrpo"):
            of_system = [line for run in runs for line in run if name_of(line) == name]
            medians = (
                statistics.median(line[key] for line in of_system)
                for key in ("rollout_tok_s", "learn_tok_s")
            )
            cells.append(", ".join(f"{median:,.0f}" for median in medians))
        found = [ratios(run) for run in runs]
        cells += [f"{statistics.median(one[key] for one in found):.1f}x" for key in "RLS"]
        rows.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def plot(records: list[dict], path: Path) -> None:
    """Draws the medians as bars, a panel for each shape and phase."""
    mpl.use("Agg")
    shapes = [shape for shape in SHAPES if any(record["shape"] == shape for record in records)]
    figure, panels = plt.subplots(2, len(shapes), figsize=(9, 4.5), layout="constrained")
    for column, shape in enumerate(shapes):
        runs = [record["lines"] for record in records if record["shape"] == shape]
        for row, key in enumerate(("rollout_tok_s", "learn_tok_s")):
            heights = [
                statistics.median(one[key] for run in runs for one in run if name_of(one) == name)
                for name in (*PEERS, "jgrpo")
            ]
            panel = panels[row][column]
            bars = panel.bar(["TRL", "Tunix", "jgrpo"], heights, color=["#999", "#999", "#2a6"])
            panel.bar_label(bars, fmt="{:,.0f}")
            panel.set_ylim(0, 1.2 * max(heights))
            panel.set_yticks([])
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.set_title(f"{shape}: {'rollout' if row == 0 else 'learner'} tokens/s", size=10)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs what is asked for and prints the table of everything in the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("script", type=Path, help="peers.sh")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="draw what is recorded and run nothing")
    parser.add_argument("--load", type=float, default=0.7, help="a run waits for this load")
    args = parser.parse_args()
    if args.plot:
        plot([json.loads(line) for line in RESULTS.read_text().splitlines()], args.plot)
        return
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    RESULTS.parent.mkdir(exist_ok=True)
    for run in range(args.runs):
        for shape in args.shapes:
            wait_until_quiet(args.load)
            record = {"shape": shape, "run": run, "commit": commit, "load": os.getloadavg()}
            record["lines"] = systems(args.script.resolve(), shape)
            with RESULTS.open("a") as out:
                out.write(json.dumps(record) + "\n")
            print(shape, run, ratios(record["lines"]), flush=True)
    print(table([json.loads(line) for line in RESULTS.read_text().splitlines()]))


if __name__ == "__main__":
    main()
