"""A sweep runs through the command: failures do not stop it, and finished runs are passed over."""

import csv
import json
import subprocess
import sys
from pathlib import Path

from one_device import ONE_DEVICE
from sweep_files import NOWHERE, write_sweep

from jgrpo import cli

ROOT = Path(__file__).parents[2]


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train.py", "--sweep", str(folder / "sweep.yaml")],
        cwd=ROOT,
        env=ONE_DEVICE,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_runs_records_a_failure_and_passes_over_what_is_finished(tmp_path, capsys):
    write_sweep(tmp_path, "tiny", NOWHERE)
    done = _run(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    good, bad = _rows(tmp_path / "runs" / "runs.csv")
    assert (good["status"], bad["status"]) == ("done", "failed")
    assert NOWHERE in bad["detail"]
    summary = json.loads((tmp_path / "runs" / good["name"] / "summary.json").read_text())
    assert float(good["after"]) == summary["eval_after"]["greedy_accuracy"]
    table = _rows(tmp_path / "runs" / "table.csv")
    assert [row["optim.lr"] for row in table] == ["0.0001", "0.0003"]
    assert [row["num_seeds"] for row in table] == ["1", "0"]
    metrics = tmp_path / "runs" / good["name"] / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    assert cli.train_main(["--sweep", str(tmp_path / "sweep.yaml"), "--index", "0"]) == 0
    assert "starting" not in capsys.readouterr().out
    assert metrics.stat().st_mtime_ns == before
