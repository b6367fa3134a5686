"""What rewards failed on is kept with the run; too much of it stops the run."""

import json

import numpy as np
import pytest

from jgrpo.quarantine import Quarantine
from jgrpo.rewards.score import Scores
from jgrpo.rewards.scoring import Failure


def _failure(kind="raised", **fields):
    defaults = {
        "function": "mine:f",
        "kind": kind,
        "detail": "KeyError: 'x'",
        "completions": 1,
        "prompt": "p",
        "completion": "c",
        "columns": {"level": 3},
    }
    return Failure(**defaults | fields)


def _scores(failed=(), *failures, name="mine:f"):
    count = len(failed)
    return Scores(
        names=(name,),
        columns=np.zeros((count, 1), np.float32),
        total=np.zeros(count, np.float32),
        valid=np.ones(count, bool),
        asked=np.ones(count, bool),
        failed={name: np.array(failed, bool)},
        failures=failures,
        calls=count,
        calls_per_s=1.0,
    )


def _lines(folder):
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_each_failure_is_a_line_with_what_it_happened_with(tmp_path):
    quarantine = Quarantine(tmp_path, 1.0)
    assert quarantine.add(0, _scores([False])) == []
    assert not (tmp_path / "quarantine.jsonl").exists()
    chat = [{"role": "user", "content": "?"}]
    quarantine.add(3, _scores([True, True], _failure(), _failure("deadline", prompt=chat)))
    quarantine.close()
    first, second = _lines(tmp_path)
    assert first == {
        "step": 3,
        "function": "mine:f",
        "kind": "raised",
        "detail": "KeyError: 'x'",
        "completions": 1,
        "prompt": "p",
        "completion": "c",
        "columns": {"level": 3},
    }
    assert (second["kind"], second["prompt"]) == ("deadline", chat)


def test_lines_are_bounded_and_valid_whatever_failed(tmp_path):
    loop: list[object] = []
    loop.append(loop)
    columns = {
        "long": "x" * 10**6,
        "nan": float("nan"),
        "object": {1, 2},
        "loop": loop,
        "half": "\ud800",
        **{f"column_{i}": "y" * 2000 for i in range(100)},
    }
    failure = _failure(
        detail="\udc80" + "z" * 10**6,
        prompt="p" * 10**6,
        completion="\ud800" * 10**6,
        columns=columns,
    )
    quarantine = Quarantine(tmp_path, 1.0)
    quarantine.add(0, _scores([True], failure))
    quarantine.close()
    (row,) = _lines(tmp_path)
    assert len((tmp_path / "quarantine.jsonl").read_bytes()) < 100_000
    assert row["columns"]["object"] == "{1, 2}"
    assert row["columns"]["nan"] == "nan"
    assert row["columns"]["long"].endswith("... (1000002 characters)")
    assert row["completion"].endswith("... (1000000 characters)")


def test_news_is_told_once_for_each_function_and_kind(tmp_path):
    quarantine = Quarantine(tmp_path, 1.0)
    news = quarantine.add(0, _scores([True] * 3, _failure(), _failure(), _failure("died")))
    assert [line.split(";")[0] for line in news] == [
        "step 0: reward 'mine:f' failed (raised: KeyError: 'x')",
        "step 0: reward 'mine:f' failed (died: KeyError: 'x')",
    ]
    assert quarantine.add(1, _scores([True], _failure())) == []
    quarantine.close()


def test_resume_drops_the_failures_of_later_steps(tmp_path):
    quarantine = Quarantine(tmp_path, 1.0)
    for step in range(4):
        quarantine.add(step, _scores([True], _failure(prompt=str(step))))
    quarantine.close()
    again = Quarantine(tmp_path, 1.0)
    again.resume(2)
    again.add(2, _scores([True], _failure(prompt="new")))
    again.close()
    assert [(row["step"], row["prompt"]) for row in _lines(tmp_path)] == [
        *((0, "0"), (1, "1"), (2, "new"))
    ]


def test_reward_that_fails_too_often_stops_the_run(tmp_path):
    """A quarter of 40 is more than a fifth; the failures are on the disk by then."""
    quarantine = Quarantine(tmp_path, 0.2)
    failed = [True] * 10 + [False] * 30
    message = (
        r"step 5: reward 'mine:f' failed on 25% of the last 40 completions \(in this step "
        r"2 raised, 1 died; the last: KeyError: 'x'\), .*max_failure_rate = 0.2; .*quarantine.jsonl"
    )
    with pytest.raises(RuntimeError, match=message):
        quarantine.add(5, _scores(failed, _failure(), _failure(), _failure("died")))
    quarantine.close()
    assert len(_lines(tmp_path)) == 3


def test_rate_is_over_a_window_and_not_over_the_first_few(tmp_path):
    """19 failures at the start are too few to judge, and 200 completions later forgotten."""
    quarantine = Quarantine(tmp_path, 0.1)
    quarantine.add(0, _scores([True] * 19))
    with pytest.raises(RuntimeError, match="95% of the last 20 completions"):
        quarantine.add(1, _scores([False]))
    quarantine.add(2, _scores([False] * 199))
    quarantine.add(3, _scores([True] * 20 + [False] * 180))
    with pytest.raises(RuntimeError, match=r"10% of the last 200 completions .*none in this step"):
        quarantine.add(4, _scores([True] * 21))
    quarantine.close()


def test_full_disk_is_not_passed_over(tmp_path):
    quarantine = Quarantine(tmp_path / "no such folder", 1.0)
    with pytest.raises(OSError, match="quarantine"):
        quarantine.add(0, _scores([True], _failure()))
