"""Updates that are not finite: skipped, counted, and after too many in a row the run gives up."""

import json
import shutil
from pathlib import Path

import pytest

from jgrpo import config_io
from jgrpo.config import Config
from jgrpo.data.order import prompt_ids
from jgrpo.data.tasks import load_task
from jgrpo.run import train

ROOT = Path(__file__).parents[2]
SMALL = (
    "method=dr_grpo",
    "data.num_prompts_per_step=8",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=24",
    "eval.num_prompts=8",
    "checkpoint.every=1",
    "checkpoint.keep=9",
    "divergence.max_skipped_in_row=1",
    "run.steps=4",
)


def config(folder: Path, *more: str) -> Config:
    """A run whose third step (steps count from 0, so step 2) asks a poisoned prompt."""
    quickstart = ROOT / "configs" / "quickstart.yaml"
    plain = config_io.load(quickstart, [*SMALL, f"run.dir={folder}", *more])
    task = load_task(plain.data)
    first_of_step_2 = prompt_ids(len(task.train), plain.run.seed, 2 * 8, 8, shuffle=True)[0]
    poison = task.train[int(first_of_step_2)].prompt
    reward = {"name": "rewards_of_tests:poisoned", "options": {"poison": poison}}
    words = [*SMALL, f"run.dir={folder}", *more, f"reward.functions=[{json.dumps(reward)}]"]
    return config_io.load(quickstart, words)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_divergence_stops_the_run_with_the_last_good_step_on_disk(tmp_path: Path):
    with pytest.raises(FloatingPointError, match=r"1 steps in a row, up to step 3, .* lower optim"):
        train(config(tmp_path))
    assert [row["optim/skipped_updates"] for row in rows(tmp_path)] == [0, 0, 1]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_rolling_back_goes_on_with_other_prompts(tmp_path: Path, capsys):
    summary = train(config(tmp_path, "divergence.then=roll_back"))
    assert summary["roll_backs"] == [{"from_step": 3, "cursor": 24}]
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3]
    assert [row["optim/skipped_updates"] for row in rows(tmp_path)] == [0, 0, 0, 0]
    said = capsys.readouterr().err
    assert "ALARM" not in said  # alarms look at ten steps
    assert "step 3: diverged; going on from step 2, new prompts" in said
    asked = [
        json.loads(line)["prompt_index"]
        for path in sorted((tmp_path / "samples").iterdir())
        for line in path.read_text().splitlines()
    ]
    assert sorted(set(asked)) == [*range(16), *range(24, 40)]


@pytest.mark.slow
def test_killed_after_a_roll_back_the_run_comes_to_the_same_end(tmp_path: Path):
    """The checkpoint that followed the divergence is lost, so it happens again."""
    alone = train(config(tmp_path / "alone", "divergence.then=roll_back"))
    train(config(tmp_path / "again", "divergence.then=roll_back", "run.steps=3"))
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "3")
    again = train(config(tmp_path / "again", "divergence.then=roll_back"))
    assert again == alone
    without_clock = [
        [
            {k: v for k, v in row.items() if not k.endswith("_s") and "tok_s" not in k}
            for row in rows(tmp_path / name)
        ]
        for name in ("alone", "again")
    ]
    assert without_clock[0] == without_clock[1]


def test_roll_backs_are_counted_and_limited(tmp_path: Path):
    more = ("divergence.then=roll_back", "divergence.max_roll_backs=2", "optim.lr=1e30")
    with pytest.raises(FloatingPointError, match=r"not finite \(roll-backs so far: 2\)"):
        train(config(tmp_path, *more))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["roll_backs"]) == 2
