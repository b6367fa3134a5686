"""Runs examples/minimal_grpo.py as a reader would, for two steps."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "jgrpo/assets/tiny/model.safetensors"


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"needs {WEIGHTS}")
def test_two_steps_run_and_accuracy_is_printed_before_and_after():
    done = subprocess.run(
        [sys.executable, "examples/minimal_grpo.py", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    accuracies = [float(x) for x in re.findall(r"greedy accuracy: +([\d.]+) %", done.stdout)]
    assert len(accuracies) == 2, done.stdout
    before, after = accuracies
    # The embedded model starts careless; two steps cannot ruin it, and already help a little.
    assert 10.0 <= before <= 60.0
    assert after >= before - 10.0
    assert len(re.findall(r"^step ", done.stdout, flags=re.M)) == 2
