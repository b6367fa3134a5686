"""A disk that fills up, a folder that cannot be written: a clear error, and nothing lost.

A limit on the size of files stands for the full disk.
"""

import json
import subprocess
import sys
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
    "checkpoint.every=1",
    "run.steps=2",
)


LIMITED = """
import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def run(folder: Path, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(ONE_DEVICE)
    command = ["train.py", "configs/quickstart.yaml", *SMALL, f"run.dir={folder}"]
    if limit_bytes is not None:
        del environment["JAX_COMPILATION_CACHE_DIR"]  # jax would warn of a cache it cannot write
        command = ["-c", LIMITED, str(limit_bytes), *command]
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = lambda name: name.endswith("_s") or "tok_s" in name  # noqa: E731
    return [{k: v for k, v in row.items() if not clock(k)} for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert run(folder).returncode == 0
    return folder


@pytest.mark.parametrize(
    ("limit_bytes", "what"),
    [(1_000_000, "checkpoints/1: was not saved"), by_hand(8_000, "samples/step_000000.jsonl")],
)
def test_full_disk_is_named_and_the_run_goes_on_later(
    tmp_path: Path, alone: Path, limit_bytes: int, what: str
):
    done = run(tmp_path, limit_bytes)
    assert done.returncode == 2
    # Once; orbax shows the traceback of its own thread before or after.
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert what in done.stderr
    assert "File too large" in done.stderr
    assert not list(tmp_path.rglob("*.partial"))

    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path) == metrics(alone)
    for path in (alone / "samples").iterdir():
        assert (tmp_path / "samples" / path.name).read_bytes() == path.read_bytes()


def test_folder_that_cannot_be_made_is_named():
    done = run(Path("/proc/nobody/run"))
    assert done.returncode == 2
    assert "/proc/nobody" in done.stderr
    assert "Traceback" not in done.stderr
