"""Every method that keeps a state goes on from a checkpoint as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from by_hand import by_hand
from quickstart_runs import ROOT, SMALL, leaves, metrics, run, samples
from stateful_methods import STATEFUL, settings

from jgrpo.algo import METHODS
from jgrpo.algo.describe import kept
from jgrpo.checkpoint import finished_steps

FROZEN = ("ws_grpo",)  # its preference model is read and not trained
KEPT = ("strategy.", "aux.", "ref_params.")
STEPS = 3
ENV = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    # A process that is killed must not leave half an entry in the cache that all tests share.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9",
}

# What runs in the suite: a critic, a value model, multipliers, a second role. The others, and the
# kills, run by hand: a kill takes one to two minutes, since a process compiles anew what is quick.
RESUMED = ("ppo_clip", "v0", "fgrpo", "hill")
KILLED = ("masa", "arise", "hill", "m_grpo", "ws_grpo")

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def words(request, tmp_path_factory):
    """Settings of a run of a method."""
    more = settings(request.param, tmp_path_factory.mktemp("files"))
    return [*more, f"run.steps={STEPS}", "checkpoint.every=1", f"checkpoint.keep={STEPS}"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, *words)
    return folder


def as_it_stood(whole, folder):
    """A copy of a run folder, less what was written after the first step."""
    shutil.copytree(whole, folder)
    for step in range(2, STEPS + 1):
        shutil.rmtree(folder / "checkpoints" / str(step))
    first, *_ = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(first)
    for path in sorted((folder / "samples").iterdir())[1:]:
        path.unlink()
    summary = json.loads((folder / "summary.json").read_text())
    before = {name: value for name, value in summary.items() if name.endswith("_before")}
    (folder / "summary.json").write_text(json.dumps(before))


def kill(folder, words, delay_s):
    """Starts a run in a process of its own and kills it, a while after its first checkpoint."""
    command = [sys.executable, "train.py", "configs/quickstart.yaml", *SMALL, *words]
    process = subprocess.Popen(
        [*command, f"run.dir={folder}"], cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not finished_steps(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint within the deadline"
        time.sleep(0.01)
    time.sleep(delay_s)
    process.kill()
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said


def check_equal(parts, whole):
    assert metrics(parts) == metrics(whole)
    assert samples(parts) == samples(whole)
    summaries = [(folder / "summary.json").read_text() for folder in (parts, whole)]
    assert summaries[0] == summaries[1]
    one, two = leaves(parts, STEPS), leaves(whole, STEPS)
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[name], err_msg=name)


@pytest.mark.parametrize(
    "words", [m if m in RESUMED else by_hand(m) for m in STATEFUL], indirect=True
)
def test_a_method_with_a_state_resumes_to_the_bit(words, whole, tmp_path, request):
    as_it_stood(whole, tmp_path / "parts")
    run(tmp_path / "parts", *words)
    check_equal(tmp_path / "parts", whole)
    rows = metrics(whole)
    assert len(rows) == STEPS
    for row in rows:
        assert np.isfinite([value for value in row.values() if value is not None]).all()
        assert row["optim/skipped_updates"] == 0
    assert max(row["grad/norm"] for row in rows) > 0
    first, last = leaves(whole, 1), leaves(whole, STEPS)
    method = request.node.callspec.params["words"]
    states = {".".join(name.split(".")[:2]) for name in last if name.startswith(KEPT[:2])}
    assert states == set(kept(METHODS[method])) - {"ref_params"}
    moved = {name for name in last if np.any(last[name] != first[name])}
    is_missed = any(name.startswith(KEPT) for name in moved)
    assert method in FROZEN or is_missed, "nobody would miss the state"


@pytest.mark.slow
@pytest.mark.parametrize("words", KILLED, indirect=True)
def test_a_killed_process_of_a_method_with_a_state_goes_on(words, whole, tmp_path):
    kill(tmp_path, words, delay_s=0.5 * random.Random().random())
    assert finished_steps(tmp_path)[-1] < STEPS
    run(tmp_path, *words)
    check_equal(tmp_path, whole)
