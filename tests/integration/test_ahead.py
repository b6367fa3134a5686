"""`rollout.lag: 1`: older weights sample, by exactly one step, and a resumed run repeats itself."""

import json
import time
from pathlib import Path

from quickstart_runs import metrics, run, samples

import jgrpo.run


def drawn(folder: Path, step: int) -> list[list[int]]:
    lines = samples(folder)[step].splitlines()
    return [json.loads(line)["completion_ids"] for line in lines]


def test_each_step_is_sampled_with_the_weights_of_one_step_before(tmp_path):
    run(tmp_path / "lag", "run.steps=3", "rollout.lag=1")
    run(tmp_path / "now", "run.steps=3")
    run(tmp_path / "still", "run.steps=3", "optim.lr=0")
    assert drawn(tmp_path / "lag", 0) == drawn(tmp_path / "now", 0)
    assert drawn(tmp_path / "lag", 1) == drawn(tmp_path / "still", 1) != drawn(tmp_path / "now", 1)
    assert drawn(tmp_path / "lag", 2) != drawn(tmp_path / "still", 2)
    # The ratio is taken against the weights that sampled, so it says how old they are.
    first, second, _ = (row["invariant/logp_gap_max"] for row in metrics(tmp_path / "lag"))
    assert first < 1e-4 < second


def test_stopped_and_continued_equals_a_run_left_alone(tmp_path):
    ahead = ("rollout.lag=1", "eval.every=1")
    run(tmp_path / "whole", "run.steps=4", *ahead)
    run(tmp_path / "parts", "run.steps=2", *ahead)
    run(tmp_path / "parts", "run.steps=4", *ahead)
    evaluated = lambda rows: [  # noqa: E731 - the last step of a run is evaluated in the summary
        {k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows
    ]
    assert evaluated(metrics(tmp_path / "parts")) == evaluated(metrics(tmp_path / "whole"))
    assert samples(tmp_path / "parts") == samples(tmp_path / "whole")


def test_the_next_step_is_scored_while_this_one_is_learned_from(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    ends, learn = list[float](), jgrpo.run.learn

    def timed(*args):
        learned = learn(*args)
        ends.append(time.monotonic())
        return learned

    monkeypatch.setattr(jgrpo.run, "learn", timed)
    reward = "reward.functions=[{name: 'rewards_of_tests:noted'}]"
    run(tmp_path / "lag", "run.steps=3", "rollout.lag=1", "reward.workers=1", reward)
    calls = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    begun = [sum(int(n) for at, n in calls if float(at) < end) for end in ends]
    before, step = 16, 8 * 4  # completions of the evaluation, and of a step
    assert begun[0] > before + step
    assert begun[1] > before + 2 * step
    assert begun[2] == before + 3 * step
