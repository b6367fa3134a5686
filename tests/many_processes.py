"""The same command in several processes of this machine, as on as many hosts."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(count: int, *arguments: str, devices: int = 8) -> list[subprocess.Popen[str]]:
    """The same command in each of some processes, which find each other and share the devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", f"count={devices // count}"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JGRPO_COORDINATOR": address,
        "JGRPO_NUM_PROCESSES": str(count),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=env | {"JGRPO_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]


def wait_for_saves(processes: list[subprocess.Popen[str]], folder: Path, step: int) -> None:
    """Returns when a checkpoint of this step, or of a later one, is whole."""
    deadline = time.monotonic() + 300
    while max(saved_steps(folder), default=0) < step:
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint within the deadline"
        time.sleep(0.02)


def ends(processes: list[subprocess.Popen[str]], timeout: float) -> list[tuple[int, str]]:
    """Exit codes, and what they said."""
    said = [process.communicate(timeout=timeout)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in folder.glob("checkpoints/*/manifest.json"))
