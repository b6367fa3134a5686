"""Compiled programs: kept in the run folder, mended after a kill, counted; and a traced run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from quickstart_runs import ROOT, SMALL, run

ENV = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSIST"))}


def train(folder: Path, *more: str) -> tuple[int, int]:
    """Runs a process; how many programs it asked for, and how many it found on disk."""
    command = [sys.executable, "train.py", "configs/quickstart.yaml", *SMALL, f"run.dir={folder}"]
    command += ["run.compile_cache=on"]
    done = subprocess.run(
        [*command, *more], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "compilation cache" not in done.stderr
    found = re.search(r"first step done after .*: (\d+) programs, (\d+) of them", done.stderr)
    assert found, done.stderr
    return int(found[1]), int(found[2])


def test_a_second_start_finds_its_programs_and_a_broken_one_is_made_again(tmp_path):
    _, found = train(tmp_path, "run.steps=1")
    assert found == 0
    entries = sorted((tmp_path / "compiled").rglob("*-cache"))
    assert len(entries) > 4
    cut = max(entries, key=lambda path: path.stat().st_size)
    cut.write_bytes(cut.read_bytes()[:1000])
    _, found = train(tmp_path, "run.steps=2")
    assert found >= len(entries) // 2
    assert cut.stat().st_size > 1000


def test_traced_steps_leave_a_trace_and_a_page(tmp_path):
    run(tmp_path, "run.steps=3", "run.profile=steps:1-2")
    page = (tmp_path / "profile" / "summary.md").read_text()
    shares = [float(share) for share in re.findall(r"\| ([-\d.]+)% \|", page)]
    assert page.startswith("# 2 steps")
    assert sum(shares[:6]) == pytest.approx(100.0, abs=1.0)
    operations = page.partition("## The")[2].splitlines()[4:]
    assert len(operations) == 20
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
