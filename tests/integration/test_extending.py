"""The programs of docs/extending.md do what the page says."""

import dataclasses
import json
import re
import sys
import types

import numpy as np
import pytest
from quickstart_runs import ROOT, ROUNDING, SMALL, metrics, samples

from jgrpo import algo
from jgrpo.run import train

PAGE = (ROOT / "docs" / "extending.md").read_text()
PROGRAMS = dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", PAGE, flags=re.M | re.S))


@pytest.fixture
def mine(monkeypatch):
    """The modules of the page, importable."""
    monkeypatch.chdir(ROOT)
    for name, text in PROGRAMS.items():
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(text, name, "exec"), module.__dict__)


def test_each_program_is_short():
    assert list(PROGRAMS) == ["my_plan", "my_shape", "my_sampler", "my_run"]
    assert all(text.count("\n") < 30 for text in PROGRAMS.values())


@pytest.mark.usefixtures("mine")
def test_the_plan_of_the_page():
    plan = algo.plan(algo.method("grpo", plan="my_plan:second_chance"), 2, 2)
    rewards = np.array([[0, 0, 0, 1], [1, 0, np.nan, np.nan]])
    first = np.where([True, True, False, False], rewards, np.nan)
    seen = algo.Seen(
        rounds=("first",), step=0, steps=1, room=1, prompt_ids=np.arange(2),
        drawn=np.array([2, 2]), noise=np.zeros((2, 4)),
        lengths=np.array([[3, 3, 0, 0]] * 2), rewards=first,
    )  # fmt: skip
    assert plan.wants(seen).wants == [algo.Want(0, 2, 2)]
    after = dataclasses.replace(
        seen, rounds=("first", "again"), lengths=np.array([[3] * 4, [3, 3, 0, 0]]), rewards=rewards
    )
    assert plan.wants(after) is None
    assert plan.finish(after).place.tolist() == [[0, 3], [0, 1]]


@pytest.mark.usefixtures("mine")
def test_the_shape_and_the_sampler_of_the_page():
    m = algo.method("grpo", shape="my_shape:short", base="none", scale="none")
    side = algo.Side(lengths=np.array([[5, 10]]), max_completion_tokens=10)
    values = algo.advantages(m, np.array([[1, 0]], np.float32), side).values
    np.testing.assert_allclose(np.asarray(values), [[0.95, 0]])
    m = algo.method("grpo", sampler="my_sampler:hard_ones")
    rewards = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], np.float32)
    assert np.asarray(algo.dynamic_keep(m, rewards)).tolist() == [True, False, False, True]


@pytest.mark.usefixtures("mine")
def test_the_run_of_the_page(tmp_path):
    from jgrpo import config_io

    words = re.findall(r'^        "(.*)",$', PROGRAMS["my_run"], flags=re.M)
    small = [*SMALL, "eval.num_prompts=4", "run.steps=2", f"run.dir={tmp_path}"]
    assert sys.modules["my_run"].cfg.method.plan == "my_plan:second_chance"
    train(config_io.load(ROOT / "configs" / "quickstart.yaml", [*words, *small]))
    rows = [json.loads(line) for text in samples(tmp_path) for line in text.splitlines()]
    assert {row["round"] for row in rows} == {1, 2}
    assert all(row["group_index"] == 3 for row in rows if row["round"] == 2)
    for row in metrics(tmp_path):
        assert 0 < row["plan/again_fraction"] <= 1
        assert row["invariant/logp_gap_max"] < ROUNDING
