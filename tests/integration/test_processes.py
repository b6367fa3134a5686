"""Training in several processes: the same tokens as one, one save for all, and none waits for ever.

The reference trains in this process, on its eight devices; two processes have four each.
"""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import quickstart_runs as quickstart
from many_processes import ends, saved_steps, start, wait_for_saves

from jgrpo.export import export
from jgrpo.watch import HANGS, MISSING

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()
# The first reward says what is correct; the last, without weight, in which process it was asked.
SETTINGS = (
    "rollout.group_size=2",
    "rollout.max_completion_tokens=16",
    "eval.num_prompts=8",
    "checkpoint.every=1",
    "method.penalty=k3",
    "method.kl_coef=0.04",
    "reward.workers=1",
    "reward.functions=[{name: exact_match}, {name: 'rewards_of_tests:summed'}, "
    "{name: 'rewards_of_tests:scorer', weight: 0.0}]",
)


def train(count: int, folder: Path, *more: str) -> list[subprocess.Popen[str]]:
    settings = (*quickstart.SMALL, *SETTINGS, f"run.dir={folder}", *more)
    return start(count, "train.py", "configs/quickstart.yaml", *settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that one of them was asked to stop after some steps."""
    return tmp_path_factory.mktemp("processes") / "run"


@pytest.fixture(scope="module")
def stopped(folder: Path) -> list[tuple[int, str]]:
    processes = train(2, folder, "run.steps=100000")
    wait_for_saves(processes, folder, 3)
    processes[1].send_signal(signal.SIGTERM)
    return ends(processes, 60)


def test_one_signal_leads_to_one_save_in_all(folder: Path, stopped: list[tuple[int, str]]):
    (code, said), (other_code, other_said) = stopped
    assert (code, other_code) == (75, 75), said + other_said
    assert "SIGTERM: saving, then stopping" in other_said
    assert "SIGTERM: saving" not in said  # nobody asked this one
    for process, text in enumerate((said, other_said)):
        assert f"process {process}: stopped by SIGTERM; the same command continues" in text
        assert "Traceback" not in text
    assert "step 1/" in said
    assert "step 1/" not in other_said  # the first alone shows
    assert saved_steps(folder)[-1] == len(quickstart.metrics(folder))


def test_tokens_are_those_of_one_process_and_each_scores_its_own(
    folder: Path, stopped: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT / "tests")
    quickstart.run(tmp_path, *SETTINGS, "run.steps=3")
    scorers = set()
    for step in range(3):
        rows, others = (quickstart.sample_rows(path, step) for path in (tmp_path, folder))
        assert len(rows) == len(others) == 16
        for row, other in zip(rows, others, strict=True):
            assert row.pop("rewards")["rewards_of_tests:scorer"] == -1
            scorer = other.pop("rewards")["rewards_of_tests:scorer"]
            scorers.add((other["prompt_index"] % 2, scorer))
            np.testing.assert_allclose(row.pop("logp"), other.pop("logp"), atol=1e-4)
            assert row.pop("advantage") == pytest.approx(other.pop("advantage"), abs=1e-5)
            assert row == other
    assert scorers == {(0, 0.0), (1, 1.0)}
    for row, other in zip(quickstart.metrics(tmp_path), quickstart.metrics(folder), strict=False):
        assert row["grad/norm"] > 0.01  # there is something to learn
        for name in ("loss/total", "grad/norm", "reward/mean", "kl/behavior"):
            assert row.get(name) == pytest.approx(other.get(name), abs=1e-4), name


def test_killed_process_ends_the_other_which_names_it(folder: Path, stopped: object):
    before = saved_steps(folder)[-1]
    processes = train(2, folder, f"run.steps={before + 100000}", "run.host_timeout_s=10")
    try:
        wait_for_saves(processes, folder, before + 1)
        processes[1].kill()
        ((code, said),) = ends(processes[:1], 40)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert code == MISSING, said
    assert f"continuing {folder} after step {before}" in said
    assert f"process 0 on {HOST}: process 1 on {HOST} has given no sign of life for 10 s" in said
    assert "the same command on all hosts continues" in said


def test_one_process_and_then_four_continue_what_two_have_begun(
    folder: Path, stopped: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT / "tests")
    first = saved_steps(folder)[-1]
    quickstart.run(folder, *SETTINGS, f"run.steps={first + 1}")
    for code, said in ends(train(4, folder, f"run.steps={first + 2}"), 300):
        assert code == 0, said
    quickstart.run(tmp_path, *SETTINGS, f"run.steps={first + 2}")
    for step in (first, first + 1):
        shown = [
            [(row["prompt"], row["completion"]) for row in quickstart.sample_rows(path, step)]
            for path in (tmp_path, folder)
        ]
        assert shown[0] == shown[1]
        whole, continued = (quickstart.metrics(path)[step] for path in (tmp_path, folder))
        assert continued["loss/total"] == pytest.approx(whole["loss/total"], abs=1e-4)
    scorers = {
        (row["prompt_index"] % 4, row["rewards"]["rewards_of_tests:scorer"])
        for row in quickstart.sample_rows(folder, first + 1)
    }
    assert scorers == {(i, float(i)) for i in range(4)}


def test_two_processes_export_what_one_does(folder: Path, stopped: object, tmp_path: Path):
    command = ("-m", "jgrpo", "export", str(folder), "--to", str(tmp_path / "two"))
    for code, said in ends(start(2, *command), 120):
        assert code == 0, said
    export(folder, tmp_path / "one")
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    named = {"README.md", "jgrpo_export.json"}  # after the directory
    assert one.keys() == two.keys() > named
    for name in one.keys() - named:
        assert one[name] == two[name], name


ALIVE = """
import sys, time
from jgrpo.parallel import hosts
from jgrpo.parallel.distributed import initialize
from jgrpo.watch import Watch

initialize()
with Watch(4.0, 0.0):
    hosts.exchange("here")
    print("here", flush=True)
    if hosts.index() == 1 and sys.argv[1:]:
        raise ValueError(sys.argv[1])
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("victim", "number", "told"),
    [
        (1, signal.SIGSTOP, "process 1 on {host} has given no sign of life for 4 s"),
        (0, signal.SIGSTOP, "process 0, through which all hear of each other, has given no sign"),
        (0, signal.SIGKILL, ""),  # jax may be faster, with its own message
        (1, None, "process 1 on {host} has ended: ValueError: no such data"),
    ],
)
def test_process_that_is_gone_ends_the_other(victim: int, number: int | None, told: str):
    processes = start(2, "-c", ALIVE, *([] if number else ["no such data"]))
    try:
        for process in processes:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != "here\n":
                assert line, process.communicate()[1]
        if number:
            processes[victim].send_signal(number)
        ((code, said),) = ends([processes[1 - victim]], 30)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert code == MISSING or (not told and code), said
    assert told.format(host=HOST) in said


ALIKE = """
from jgrpo import config_io
from jgrpo.parallel import hosts
from jgrpo.parallel.distributed import initialize
from jgrpo.together import check_alike

initialize()
for words in ([f"run.seed={hosts.index()}"], []):
    try:
        check_alike(config_io.load("configs/quickstart.yaml", words))
        print("- fine")
    except ValueError as error:
        print("-", error)
"""


def test_processes_that_were_started_otherwise_are_refused_in_all():
    said = []
    for process in start(2, "-c", ALIKE):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        said.append([line for line in out.splitlines() if line.startswith("-")])
    assert said[0] == said[1]
    other, fine = said[0]
    assert "must be started with the same config" in other
    assert fine == "- fine"


BUSY = """
import time
from jgrpo.watch import Watch

def hanging_reward():
    time.sleep(60)

with Watch(60.0, 1.0) as watch:
    for _ in range(6):
        time.sleep(0.3)
        watch.moved()
    print("moves", flush=True)
    hanging_reward()
"""


def test_step_that_does_not_end_ends_the_run():
    done = subprocess.run(
        [sys.executable, "-c", BUSY], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (HANGS, "moves\n"), done.stderr
    assert "no step, evaluation or save has ended for 1 s (run.watchdog_s)" in done.stderr
    assert "hanging_reward" in done.stderr
