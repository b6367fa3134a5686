"""Programs are compiled once a bucket, and before the first step where that is asked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from by_hand import by_hand
from quickstart_runs import ROOT, SMALL

GROUPS = "int32[8,4]"  # the slots of training; evaluation has int32[16,1]


def compiled(folder: Path, *more: str) -> list[str]:
    """Trains; returns name and shapes of our programs in the order in which they were compiled."""
    command = [sys.executable, "train.py", "configs/quickstart.yaml", *SMALL, f"run.dir={folder}"]
    done = subprocess.run(
        [*command, *more],
        cwd=ROOT,
        env=os.environ | {"JAX_LOG_COMPILES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ours = "_update|in_order|start|advance|admit|unstacked|_for_sampling"
    return re.findall(rf"Compiling (jit\((?:{ours})\) with .*)", done.stderr)


@pytest.mark.slow
def test_nothing_of_a_step_is_compiled_after_the_warm_up(tmp_path: Path):
    said = compiled(tmp_path, "run.steps=2", "run.compile_ahead=on", "optim.packing=false")
    evaluation = next(i for i, program in enumerate(said) if "int32[16,1]" in program)
    steps = [i for i, program in enumerate(said) if GROUPS in program or "jit(_upd" in program]
    assert sum("jit(_update)" in program for program in said) == 1
    assert len(steps) >= 4
    assert max(steps) < evaluation


@pytest.mark.parametrize("method", ["grpo", by_hand("{name: grpo, top_entropy_quantile: 0.2}")])
def test_a_run_compiles_once_a_bucket(tmp_path: Path, method: str):
    """Completions of all lengths, rings that grow, slots that refill, packed updates."""
    settings = ["rollout.slots=8", "rollout.chunk_tokens=4", "rollout.temperature=1.3"]
    said = compiled(tmp_path, "run.steps=6", f"method={method}", *settings)
    assert {re.match(r"jit\((\w+)\)", program)[1] for program in said} >= {"_update", "advance"}
    assert len(said) == len(set(said))
