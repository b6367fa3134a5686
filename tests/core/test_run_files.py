import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jgrpo.run_files import MetricsFile, Sample, SamplesWriter, StepLog


def _rows(run_dir: Path) -> list[dict]:
    return _lines(run_dir / "metrics.jsonl")


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_line_has_step_first_then_sorted_names(tmp_path: Path):
    file = MetricsFile(tmp_path)
    file.add(0, {"reward/mean": 0.25, "kl/ref": np.float32(0.1), "optim/updates": 3})
    file.close()
    expected = '{"step": 0, "kl/ref": 0.1, "optim/updates": 3, "reward/mean": 0.25}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_number_is_null(tmp_path: Path, value: float):
    file = MetricsFile(tmp_path)
    file.add(0, {"loss/total": value})
    file.close()
    assert _rows(tmp_path) == [{"step": 0, "loss/total": None}]


def test_step_must_rise(tmp_path: Path):
    file = MetricsFile(tmp_path)
    file.add(3, {})
    with pytest.raises(ValueError, match="step 3 comes after step 3"):
        file.add(3, {})
    file.close()


@pytest.mark.parametrize("torn", [b"", b'{"step": 5, "rew', b"\xff\x00"])
@pytest.mark.parametrize("finished_steps", range(7))
def test_resumed_file_equals_one_never_interrupted(
    tmp_path: Path, torn: bytes, finished_steps: int
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run_dir, steps in ((whole, 7), (cut, 5)):
        run_dir.mkdir()
        file = MetricsFile(run_dir)
        for step in range(steps):
            file.add(step, {"reward/mean": step / 3})
        file.close()
    path = cut / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    start = min(finished_steps, 5)
    file = MetricsFile(cut)
    file.resume(start)
    for step in range(start, 7):
        file.add(step, {"reward/mean": step / 3})
    file.close()
    assert path.read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [entry.name for entry in cut.iterdir()] == ["metrics.jsonl"]


def test_resuming_without_a_file_makes_none(tmp_path: Path):
    MetricsFile(tmp_path).resume(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [b"{}", b"[1]", b"text", b'{"step": "1"}', b"\xff"])
def test_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}:2: expected"):
        MetricsFile(tmp_path).resume(3)


def _sample(**changes: object) -> Sample:
    facts = {
        "step": 12,
        "prompt_index": 96,
        "group_index": 1,
        "prompt_ids": np.array([5, 6], np.int32),
        "completion_ids": np.array([7, 2], np.int32),
        "prompt": "1+1=",
        "completion": "2 ✓",
        "logp": np.array([-0.1, -1e-6], np.float32),
        "rewards": {"exact": 1.0, "judge": None},
        "reward": 1.0,
        "advantage": float("nan"),
        "finished": True,
    }
    return Sample(**(facts | changes))


def test_samples_hold_ids_text_logp_and_rewards(tmp_path: Path):
    path = SamplesWriter(tmp_path).write(12, [_sample(), _sample(group_index=2)])
    assert path == tmp_path / "samples" / "step_000012.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["group_index"] for row in rows] == [1, 2]
    assert rows[0] == {
        "step": 12,
        "prompt_index": 96,
        "group_index": 1,
        "prompt_ids": [5, 6],
        "completion_ids": [7, 2],
        "prompt": "1+1=",
        "completion": "2 ✓",
        "logp": [-0.1, -1e-06],
        "rewards": {"exact": 1.0, "judge": None},
        "reward": 1.0,
        "advantage": None,
        "finished": True,
        "injected": 0,
        "role": "",
        "round": 1,
        "level": 0,
        "context": None,
        "replaced": False,
        "replayed": False,
    }


def test_line_breaks_in_text_do_not_split_a_sample(tmp_path: Path):
    path = SamplesWriter(tmp_path).write(0, [_sample(completion="a\nb\r\n\u2028c")])
    assert path.read_bytes().count(b"\n") == 1
    assert json.loads(path.read_bytes())["completion"] == "a\nb\r\n\u2028c"


def test_resume_returns_the_lines_that_stay(tmp_path: Path):
    log = StepLog(tmp_path / "quarantine.jsonl")
    log.write(0, [{"a": 1}, {"a": 2}])
    log.write(4, [{"a": 3}])
    assert log.resume(4) == [{"step": 0, "a": 1}, {"step": 0, "a": 2}]
    log.write(1, [{"a": 4}])
    log.close()
    assert [row["a"] for row in _lines(tmp_path / "quarantine.jsonl")] == [1, 2, 4]


def test_full_disk_names_the_file_and_costs_the_step_only(tmp_path: Path):
    """The limit on the size of files stands in for a disk that fills up."""
    program = f"""
import resource, signal
from pathlib import Path
from jgrpo.run_files import StepLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log = StepLog(Path({str(tmp_path)!r}) / "metrics.jsonl")
for step in range(100):
    try:
        log.write(step, [{{"value": "x" * 300}}])
    except OSError as error:
        print(error)
        break
log.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    path = tmp_path / "metrics.jsonl"
    assert done.stdout == f"{path}: the lines of step 3 were not saved: [Errno 27] File too large\n"
    log = StepLog(path)
    assert [row["step"] for row in log.resume(100)] == [0, 1, 2]
    log.write(3, [{"value": 1}])
    log.close()
    assert [row["step"] for row in _lines(path)] == [0, 1, 2, 3]
