"""SIGTERM and Ctrl-C: saved within the grace period, an exit code of its own, continued exactly."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from by_hand import by_hand
from one_device import ONE_DEVICE

ROOT = Path(__file__).parents[2]
SMALL = (
    "data.num_prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=24",
    "eval.num_prompts=8",
)

# A process that is killed must not leave half an entry in the cache that all tests share.
ENV = ONE_DEVICE | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", "configs/quickstart.yaml", *SMALL, f"run.dir={folder}"]
    return subprocess.Popen([*command, *more], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=ENV)


def lines_of(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_steps(process: subprocess.Popen[str], folder: Path, steps: int) -> None:
    deadline = time.monotonic() + 240
    while len(lines_of(folder)) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no step within the deadline"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code", "lag"),
    [
        *((signal.SIGTERM, 75, 0), (signal.SIGINT, 130, 1)),
        *(by_hand(signal.SIGINT, 130, 0), by_hand(signal.SIGTERM, 75, 1)),
    ],
)
def test_signal_saves_and_the_same_command_continues(
    tmp_path: Path, number: int, code: int, lag: int
):
    """Also when the signal finds a step that is sampled ahead."""
    ahead = f"rollout.lag={lag}"
    process = start(tmp_path, "run.steps=100000", ahead)
    wait_for_steps(process, tmp_path, 2)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    name = signal.Signals(number).name
    assert f"{name}: saving, then stopping" in said
    assert f"stopped by {name}; the same command continues {tmp_path}" in said
    assert "Traceback" not in said
    rows = [json.loads(line) for line in lines_of(tmp_path)]
    (saved,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert [row["step"] for row in rows] == list(range(saved))

    process = start(tmp_path, f"run.steps={saved + 1}", ahead)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert f"continuing {tmp_path} after step {saved}" in said
    assert len(lines_of(tmp_path)) == saved + 1


BUSY = """
import time
from jgrpo.stopping import Stopping
with Stopping(60.0):
    print("busy", flush=True)
    while True:
        time.sleep(0.05)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_at_once_but_an_echo_of_the_first_does_not(second: int):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
    process.send_signal(second)
    _, said = process.communicate(timeout=5)
    assert process.returncode == 128 + second
    assert b"ending without a save" in said


DROPPED = """
import gc, os, signal, time
from jgrpo.stopping import Stopping, StopRequested

def ask(*_):
    if not stopping.requested:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)  # the handler runs here

class Finalized:
    def __del__(self):
        ask()

with Stopping(60.0) as stopping:
    try:
        with stopping.interruptible():
            {moment}
            time.sleep(20)
    except StopRequested:
        print("left")
"""


@pytest.mark.parametrize("moment", ["gc.callbacks.append(ask); gc.collect()", "Finalized()"])
def test_a_signal_where_python_drops_exceptions_still_leaves_the_work(moment: str):
    done = subprocess.run(
        [sys.executable, "-c", DROPPED.format(moment=moment)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert done.stdout == "left\n", done.stderr
    assert "Traceback" not in done.stderr


MISSED = """
import os, signal, threading, time
from jgrpo.stopping import Stopping, StopRequested

with Stopping(60.0) as stopping:
    # The kernel gives the signal to the other thread, so nothing wakes this one.
    threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        with stopping.interruptible():
            time.sleep(20)
    except StopRequested:
        print("left", stopping.requested)
"""


def test_a_signal_that_wakes_another_thread_still_leaves_the_work():
    done = subprocess.run(
        [sys.executable, "-c", MISSED], cwd=ROOT, capture_output=True, text=True, timeout=15
    )
    assert done.stdout == "left SIGTERM\n", done.stderr


@pytest.mark.slow
def test_grace_period_ends_a_run_that_does_not_stop_in_time(tmp_path: Path):
    process = start(tmp_path, "run.steps=100000", "run.grace_s=0.001")
    wait_for_steps(process, tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "ending without a save" in said


def test_signal_before_the_first_step_ends_the_run_in_order(tmp_path: Path):
    process = start(tmp_path, "run.steps=100000")
    deadline = time.monotonic() + 120
    while not (tmp_path / "environment.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "Traceback" not in said


def test_a_folder_in_use_is_refused_with_its_owner(tmp_path: Path):
    first = start(tmp_path, "run.steps=100000")
    try:
        wait_for_steps(first, tmp_path, 1)
        second = start(tmp_path, "run.steps=100000")
        _, said = second.communicate(timeout=120)
        assert second.returncode == 2
        assert f"is in use by pid {first.pid} on " in said
        assert "Traceback" not in said
    finally:
        first.kill()
        first.communicate()
    third = start(tmp_path, "run.steps=1")  # a killed owner leaves no lock behind
    _, said = third.communicate(timeout=240)
    assert third.returncode == 0, said
