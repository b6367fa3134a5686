"""Trains the embedded model for thousands of small steps and watches the memory of the process.

    .venv/bin/python benchmarks/soak.py --steps 2000

Prints the resident memory at every tenth of the run, and fails if it grows by more than 2 percent
between a fifth of the run and its end.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

from jgrpo import config_io
from jgrpo.pages import with_kept_pages
from jgrpo.run import train

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = (
    "data.num_prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=24",
    "eval.num_prompts=8",
    "eval.every=50",
    "checkpoint.every=50",
)
_TOLERANCE = 0.02


def main() -> None:
    """Runs the soak in this process, with a thread that samples its memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak_"))
    seen: dict[int, list[float]] = {}
    threading.Thread(target=watch, args=(folder, seen), daemon=True).start()
    quickstart = ROOT / "configs" / "quickstart.yaml"
    words = [*OVERRIDES, f"run.steps={args.steps}", f"run.dir={folder}"]
    train(config_io.load(quickstart, words))
    tenth = args.steps // 10
    means = {
        (part + 1) * tenth: mean([x for s, xs in seen.items() if s // tenth == part for x in xs])
        for part in range(10)
    }
    growth = means[10 * tenth] / means[2 * tenth] - 1.0
    print(json.dumps({"steps": args.steps, "resident_mib": means, "growth": round(growth, 4)}))
    print(f"largest resident size: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    raise SystemExit(growth > _TOLERANCE)


def watch(folder: Path, seen: dict[int, list[float]]) -> None:
    """Samples the resident memory (MiB) ten times a second, by the number of finished steps."""
    path = folder / "metrics.jsonl"
    page = os.sysconf("SC_PAGE_SIZE")
    while True:
        steps = path.read_bytes().count(b"\n") if path.exists() else 0
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20
        seen.setdefault(steps, []).append(resident)
        time.sleep(0.1)


def mean(values: list[float]) -> float:
    """The mean to a tenth."""
    return round(sum(values) / len(values), 1)


if __name__ == "__main__":
    with_kept_pages()  # as train.py does
    main()
