"""A sweep in two processes: they fail, stop and continue together, and the first writes."""

import csv
import signal
from pathlib import Path

from many_processes import ends, saved_steps, start, wait_for_saves
from sweep_files import NOWHERE, write_sweep

# Of the base's: as many held-out prompts as there are devices, and steps until somebody stops it.
LONG = ("eval.num_prompts=8", "checkpoint.every=1", "run.steps=100000")


def statuses(folder: Path) -> list[str]:
    with (folder / "runs" / "runs.csv").open() as file:
        return [row["status"] for row in csv.DictReader(file)]


def test_sweep_in_two_processes_fails_stops_and_continues_together(tmp_path: Path):
    path = write_sweep(tmp_path, NOWHERE, "tiny")
    good = tmp_path / "runs" / "lr=0.0003_path=tiny_seed=1"
    command = ("train.py", "--sweep", str(path), *LONG)
    parents = start(2, *command)
    wait_for_saves(parents, good, 1)
    parents[1].send_signal(signal.SIGTERM)
    for code, said in ends(parents, 60):
        assert code == 75, said
        assert "was stopped by SIGTERM; the same command continues the sweep" in said
    last = saved_steps(good)[-1] + 1
    parents = start(2, *command, f"run.steps={last}")
    shown = [parent.communicate(timeout=300) for parent in parents]
    assert [parent.returncode for parent in parents] == [1, 1], shown
    assert statuses(tmp_path) == ["failed", "done"]
    assert saved_steps(good)[-1] == last
    assert NOWHERE in shown[0][0]
    of_second = [line for line in shown[1][0].splitlines() if not line.startswith("[Gloo]")]
    assert of_second == []  # the first alone shows
    logs = {path.name for path in (tmp_path / "runs" / "logs").iterdir()}
    assert {f"{good.name}.stderr", f"{good.name}.1.stderr"} <= logs


def test_processes_that_were_started_with_other_sweeps_say_so(tmp_path: Path):
    folder = str(write_sweep(tmp_path, NOWHERE, "tiny"))
    script = f"""
import os
from jgrpo.sweep.runs import run_sweep
try:
    run_sweep({folder!r}, ["optim.warmup_steps=" + os.environ["JGRPO_PROCESS_ID"]], joins=True)
except ValueError as error:
    print(error)
"""
    said = [parent.communicate(timeout=60) for parent in start(2, "-c", script)]
    for out, err in said:
        assert "all processes must be started with the same sweep: process 0 has" in out, err
    assert not (tmp_path / "runs").exists()
