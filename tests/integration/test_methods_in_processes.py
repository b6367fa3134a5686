"""What keeps something from step to step, or has two threads: two processes do what one does.

The reference trains in this process, on two devices; the two have one each.
"""

from pathlib import Path

import numpy as np
import pytest
from by_hand import by_hand
from many_processes import ends, start
from quickstart_runs import SMALL, leaves, metrics, run, sample_rows
from stateful_methods import SHORT, STATEFUL, settings

STEPS = 3
KEPT = ("strategy.", "aux.", "ref_params.")
AHEAD = {
    "lag": [
        *("rollout.lag=1", "rollout.max_completion_tokens=56", "eval.num_prompts=4"),
        *("eval.every=1", "checkpoint.every=1"),  # while the next step is scored
    ],
    # It draws again when it knows the rewards of what it has drawn.
    "lag, dynamic": ["rollout.lag=1", "method=dapo", "method.overlong_buffer_tokens=8", *SHORT],
}
# What runs in the suite: a role beside the policy, and a step ahead that draws twice.
QUICK = ("hill", "lag, dynamic")


def words(case: str, folder: Path) -> list[str]:
    more = AHEAD[case] if case in AHEAD else settings(case, folder)
    return [*more, f"run.steps={STEPS}", "checkpoint.every=0"]


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("case", [c if c in QUICK else by_hand(c) for c in (*STATEFUL, *AHEAD)])
def test_two_processes_do_what_one_does(case: str, tmp_path: Path, two_devices: None):
    more = words(case, tmp_path)
    command = ("train.py", "configs/quickstart.yaml", *SMALL, *more)
    for code, said in ends(start(2, *command, f"run.dir={tmp_path / 'two'}", devices=2), 400):
        assert code == 0, said
    run(tmp_path / "one", *more)
    one, two = tmp_path / "one", tmp_path / "two"
    for row, other in zip(sample_rows(one), sample_rows(two), strict=True):
        for name in ("logp", "advantage", "reward"):
            np.testing.assert_allclose(row.pop(name), other.pop(name), rtol=1e-3, atol=2e-3)
        assert row == other
    told = metrics(one), metrics(two)
    for row, other in zip(*told, strict=True):
        for name in ("loss/total", "grad/norm", "reward/mean", "eval/greedy_accuracy"):
            assert row.get(name) == pytest.approx(other.get(name), abs=1e-3), name
    assert max(row["grad/norm"] for row in told[0]) > 0  # there is something to learn
    kept = leaves(one, STEPS), leaves(two, STEPS)
    assert kept[0].keys() == kept[1].keys()
    for name, value in kept[0].items():
        if name.startswith(KEPT):
            np.testing.assert_allclose(value, kept[1][name], rtol=1e-3, atol=2e-3, err_msg=name)
