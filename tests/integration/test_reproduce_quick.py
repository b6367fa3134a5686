"""benchmarks/reproduce.py --quick: two claims from bases to tables (not whether they hold)."""

import json
import subprocess
import sys

import numpy as np
import pytest
from one_device import ONE_DEVICE
from quickstart_runs import ROOT

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
RUNS = {
    "g2rpo_a": {"hard_grpo", "hard_g2rpo_a", "hard_g2rpo_fixed", "sums_grpo", "sums_g2rpo_a"},
    "ws_grpo": {"wordy_grpo", "wordy_ws_grpo"},
}


@pytest.mark.parametrize("claim", RUNS)
def test_a_quick_reproduction_writes_a_table_of_finite_numbers(tmp_path, claim):
    command = [sys.executable, "benchmarks/reproduce.py", "--quick", "--seeds", "0"]
    command += ["--claims", claim, "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=ONE_DEVICE, check=True, timeout=600)
    out = tmp_path / "quick"
    records = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert records.keys() == {f"{name}_s0" for name in RUNS[claim]}
    for record in records.values():
        assert "failure" not in record, record
        assert (record["updates"], len(record["curve"])) == (4, 2)
        assert record["tokens"] > 0
        numbers = [value for value in record.values() if isinstance(value, float)]
        assert np.isfinite(numbers).all()
    if claim == "ws_grpo":  # the first phase is told apart from what GRPO draws too
        assert records["wordy_ws_grpo_s0"]["tokens_before"] > 0
    table = (out / "table.md").read_text()
    assert f"| {claim} |" in table
    assert "not run" not in table
    assert "nan" not in table
    assert (out / f"claim_{claim}.png").stat().st_size > 1000
    if claim == "g2rpo_a":  # what its base is like
        program = [sys.executable, "benchmarks/bases.py", "--quick", "--out", str(tmp_path)]
        ended = subprocess.run(
            [*program, "--tasks", "hard"], cwd=ROOT, env=ONE_DEVICE, check=True, timeout=600,
            capture_output=True, text=True,
        )  # fmt: skip
        lines = [line for line in ended.stdout.splitlines() if line.startswith("| hard |")]
        assert len(lines) == 5
        for line in lines:
            greedy, once, best = (float(cell) for cell in line.split("|")[3:6])
            assert 0 <= greedy <= 1
            assert 0 <= once <= best <= 1
    # What is recorded is not run again.
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    subprocess.run([*command, "--recorded"], cwd=ROOT, env=ONE_DEVICE, check=True, timeout=600)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")} == times
    assert (out / "table.md").read_text() == table
