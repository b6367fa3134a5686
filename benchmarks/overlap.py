"""What `rollout.lag: 1` is worth where rewards take long: the next step is sampled meanwhile.

    .venv/bin/python benchmarks/overlap.py --seconds 0.02

Trains the embedded model with a reward that sleeps for each completion, with and without lag, one
after the other. Prints one JSON line: seconds of a step of both, and their ratio.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from curves import ROOT, rows
from step import print_line

from jgrpo import config_io
from jgrpo.pages import with_kept_pages
from jgrpo.run import train

STEPS, WARM = 12, 4


def slow(completions: list[Any], **columns: Any) -> list[float]:
    """Lengths, after so many seconds a completion as SLOW_REWARD_S says."""
    time.sleep(float(os.environ["SLOW_REWARD_S"]) * len(completions))
    return [float(len(completion)) for completion in completions]


def step_s(folder: Path, lag: int) -> float:
    """Median seconds of a step, after those that compile."""
    words = (
        *("reward.functions=[{name: 'overlap:slow'}]", "reward.workers=1", "eval.num_prompts=4"),
        *(f"rollout.lag={lag}", f"run.steps={STEPS}", f"run.dir={folder}"),
    )
    train(config_io.load(ROOT / "configs" / "quickstart.yaml", words))
    return statistics.median(row["time/step_s"] for row in rows(folder)[WARM:])


def main() -> None:
    """Runs both and prints the line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.02, help="of the reward, a completion")
    os.environ["SLOW_REWARD_S"] = str(parser.parse_args().seconds)
    with tempfile.TemporaryDirectory() as folder:
        found = {f"lag_{lag}_s": step_s(Path(folder) / str(lag), lag) for lag in (0, 1)}
    ratio = found["lag_0_s"] / found["lag_1_s"]
    print_line(found | {"ratio": ratio, "threads": os.cpu_count(), "loadavg": os.getloadavg()[0]})


if __name__ == "__main__":
    with_kept_pages()
    sys.path.insert(0, str(Path(__file__).parent))  # where the workers find the reward
    main()
