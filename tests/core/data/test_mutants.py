"""Tests that tell a design from its mutants: the trees, the reward, and a run on them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quickstart_runs import metrics, run

from jgrpo.config import DataConfig
from jgrpo.data.draws import is_heldout
from jgrpo.data.mutants import MAX_INPUT, Design, differs
from jgrpo.data.tasks import load_task
from jgrpo.rewards.stimulus import stimulus

TASK = load_task(DataConfig(task="mutants"))


def worth(completion, golden=(0, 7, 0), mutant=(1, 7, 0), equivalent=False):
    (found,) = stimulus(
        completions=[completion], golden=[golden], mutant=[mutant], equivalent=[equivalent]
    )
    return found


def test_designs_by_hand():
    """Of x%7 and (x+1)%7 already 0 makes 0 and 1; of x%7 and x%8 the first difference is at 7."""
    assert str(Design(0, 7, 0)) == "x%7"
    assert str(Design(1, 7, 2)) == "(x+1)%7+2"
    assert Design(1, 7, 2)(13) == 2
    assert differs(Design(0, 7, 0), Design(1, 7, 0)) == 0
    assert differs(Design(0, 7, 0), Design(0, 8, 0)) == 7
    assert differs(Design(0, 7, 0), Design(7, 7, 0)) is None


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("#6:6", 1.0),  # 6 makes 6 of the right one, 0 of the mutant
        ("#99:1", 1.0),  # and 99 makes 1 and 2
        ("6:0;#6:6", 1.0),
        ("#6:0", 0.0),  # what the mutant makes
        ("#6", 0.0),
        ("6:6", 0.0),
        ("#106:1", 0.0),  # not an input
        ("#6:6;", 0.0),
        ("#6:6#", 0.0),
        ("", 0.0),
    ],
)
def test_worth_of_a_test(completion, value):
    assert worth(completion) == value


def test_a_test_that_both_pass_is_worth_a_half_or_all_where_they_are_the_same():
    assert worth("#6:6", mutant=(0, 8, 0)) == 0.5
    assert worth("#7:0", mutant=(0, 8, 0)) == 1.0
    assert worth("#6:6", mutant=(7, 7, 0), equivalent=True) == 1.0
    assert worth("#6:5", mutant=(7, 7, 0), equivalent=True) == 0.0


@settings(deadline=None, max_examples=10)
@given(st.integers(0, len(TASK.train) // 6 - 1))
def test_a_tree_is_one_design_with_children_of_its_nodes(number):
    nodes = [TASK.train[6 * number + n] for n in range(6)]
    (golden,) = {tuple(node.columns["golden"]) for node in nodes}
    assert not is_heldout(str(Design(*golden)))
    assert [node.columns["node"] for node in nodes] == [1, 2, 3, 4, 5, 6]
    assert [node.columns["parent"] for node in nodes] == [0, 0, 1, 1, 2, 2]
    designs = {0: golden} | {n.columns["node"]: tuple(n.columns["mutant"]) for n in nodes}
    for node in nodes:
        child, parent = designs[node.columns["node"]], designs[node.columns["parent"]]
        changed = [i for i in range(3) if child[i] != parent[i]]
        assert len(changed) == 1
        same = all(Design(*golden)(x) == Design(*child)(x) for x in range(MAX_INPUT + 1))
        assert node.columns["equivalent"] == same
        assert node.prompt == f"{Design(*golden)};{Design(*child)}?"
        columns = {name: node.columns[name] for name in ("golden", "mutant", "equivalent")}
        assert worth(node.solution, **columns) == 1.0
        assert worth(f"#{node.answer}", **columns) == 1.0


def test_held_out_designs_are_in_no_training_tree():
    assert len(TASK.heldout) > 100
    assert len({example.prompt for example in TASK.heldout}) == len(TASK.heldout)
    assert all(is_heldout(str(Design(*e.columns["golden"]))) for e in TASK.heldout)


def test_a_step_asks_whole_trees_and_trains(tmp_path):
    """First on solutions, then by reward, as the method has it."""
    words = ["data.task=mutants", "data.options={}", "data.max_prompt_tokens=24"]
    words += ["eval.num_prompts=8", "data.num_prompts_per_step=24", "data.shuffle=false"]
    run(tmp_path / "sft", *words, "method=sft", "rollout.group_size=1", "run.steps=3")
    assert metrics(tmp_path / "sft")[0]["reward/mean"] == 1.0
    run(tmp_path / "rl", *words, "method=grpo_smu", "run.steps=2")
    assert [row["optim/skipped_updates"] for row in metrics(tmp_path / "rl")] == [0, 0]
