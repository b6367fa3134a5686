"""Stored dialogues become prompts of one turn: what is kept, where it is cut, what it is told."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quickstart_runs import ROOT

from jgrpo import cli, config_io
from jgrpo.data.dialogues import Dialogue, bandits, read_dialogues, swapped_outputs, varied
from jgrpo.data.tasks import load_task

FRACTIONS = st.integers(0, 20).map(lambda n: n / 20)
PUBLIC = ["assert add(2, 3) == 5", "assert add(1, 1) == 2"]
ASKED = "Write add.\n" + "\n".join(PUBLIC)


def messages(turns, ends="assistant"):
    """A task, then a program and what is said of it for each turn."""
    said = [{"role": "user", "content": ASKED}]
    for turn in range(1, turns + 1):
        said.append({"role": "assistant", "content": f"program {turn}"})
        said.append({"role": "user", "content": f"{PUBLIC[0]} failed, turn {turn}"})
    return said if ends == "user" else said[:-1]


def dialogue(*passed, task="add", ends="assistant", columns=None):
    return Dialogue(
        task=task, messages=messages(len(passed), ends), passed=passed, public=PUBLIC,
        columns=columns or {"task": task},
    )  # fmt: skip


def cuts(*dialogues, fits=lambda prompt: True, swapped=0.0):
    return list(bandits(dialogues, fits, swapped=swapped))


def test_cobalt_worked_example():
    """Ranges 1, .5, .1, .8, none, none, .4: dialogues 2, 6, 3 and 0 are kept, behind the task."""
    shares = [(0, 1), (0.5, 1), (0.9, 1), (0.2, 1), (0.3, 0.5), (1, 1), (0.6, 1)]
    rows = cuts(*(dialogue(*passed) for passed in shares))
    assert [(row["turn"], row["prev_best"]) for row in rows] == [
        (0, 0), (1, 0.9), (1, 0.6), (1, 0.2), (1, 0),
    ]  # fmt: skip
    assert rows[0]["prompt"] == messages(1)[:1]
    assert rows[1]["prompt"] == messages(2)[:3]
    assert all(row["task"] == "add" and not row["swapped"] for row in rows)


@pytest.mark.parametrize(
    ("passed", "ends", "expected"),
    [
        ((0, 0.4, 0.2, 0.1, 1), "assistant", [(1, 0), (2, 0.4), (3, 0.4)]),  # three turns at most
        ((0, 1), "assistant", [(1, 0)]),
        ((0, 1), "user", [(1, 0), (2, 1)]),  # one program that passes may be bettered
        ((0, 1, 1), "user", [(1, 0), (2, 1)]),  # two in a row that pass end it
        ((1, 1, 0.5), "user", [(1, 1)]),
        ((0.5, 0.9), "user", []),  # nothing passes all tests
        ((0.5, 0.5), "user", []),
    ],
)
def test_where_a_dialogue_is_cut(passed, ends, expected):
    rows = cuts(dialogue(0.1), dialogue(*passed, ends=ends))
    assert (rows[0]["turn"], rows[0]["prev_best"]) == (0, 0)
    assert [(row["turn"], row["prev_best"]) for row in rows[1:]] == expected
    for row in rows:
        assert row["prompt"][-1]["role"] == "user"
        assert len(row["prompt"]) == 2 * row["turn"] + 1


def test_a_task_that_every_first_program_solves_is_left_out():
    rows = cuts(dialogue(1, 0), dialogue(1, 1), dialogue(1, task="easy"), dialogue(0, task="hard"))
    assert [row["task"] for row in rows] == ["hard"]


def test_prompts_that_do_not_fit_end_a_dialogue():
    whole = dialogue(0, 0.5, 0.2, 1)
    assert [row["turn"] for row in cuts(whole, fits=lambda prompt: len(prompt) <= 5)] == [0, 1, 2]
    assert cuts(whole, fits=lambda prompt: False) == []


def test_two_visible_outputs_change_places_wherever_they_stand():
    rows = cuts(dialogue(0, 1, ends="user"), swapped=1.0)
    assert [row["swapped"] for row in rows] == [False, True, True]
    assert rows[0]["prompt"][0]["content"] == ASKED
    asked, program, answer = rows[1]["prompt"]
    assert asked["content"] == "Write add.\nassert add(2, 3) == 2\nassert add(1, 1) == 5"
    assert program["content"] == "program 1"
    assert answer["content"] == "assert add(2, 3) == 2 failed, turn 1"
    many = [dialogue(0, i / 1000, 1) for i in range(1, 401)]
    for i, one in enumerate(many):
        one.messages[1]["content"] += f", by {i}"
        one.columns["task"] = str(i)
    rows = [row for one in many for row in cuts(one, swapped=0.1)]
    share = np.mean([row["swapped"] for row in rows if row["turn"] == 1])
    assert 0.05 < share < 0.15


def test_outputs_are_told_from_calls_by_the_grammar():
    assert swapped_outputs(['assert f("a == b") == 1', "assert f(2) == [1, 2]"]) == {
        'assert f("a == b") == 1': "assert f('a == b') == [1, 2]",
        "assert f(2) == [1, 2]": "assert f(2) == 1",
    }
    assert swapped_outputs(["assert f(1) == 2", "assert f(2) == 2"]) == {}
    assert swapped_outputs([]) == {}
    with pytest.raises(ValueError, match="must list assertions"):
        swapped_outputs(["assert f(1)", "assert f(2) == 1"])


ROW = {"task": "add", "messages": messages(2), "passed": [0, 1], "public": PUBLIC, "stub": ""}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": 3}, r"d:2: field 'task' must be a text"),
        ({"messages": messages(2)[1:]}, r"field 'messages' must be a list of messages.*roles"),
        ({"messages": "Write add."}, r"field 'messages' must be a list of messages"),
        ({"passed": [0]}, r"field 'passed' must list a number from 0 to 1 for each of the 2"),
        ({"passed": [0, 1.5]}, r"field 'passed' must list a number from 0 to 1"),
        ({"public": ["assert add(7, 7) == 14"]}, r"field 'public': no user's message shows"),
        ({"public": "assert add(2, 3) == 5"}, r"field 'public' must list texts"),
        ({"messages": None}, r"d:2: field 'messages' must be"),
    ],
)
def test_a_row_that_is_no_dialogue_is_refused(changed, message):
    assert len(read_dialogues([("d:1", ROW)])) == 1
    with pytest.raises(ValueError, match=message):
        read_dialogues([("d:1", ROW), ("d:2", ROW | changed)])


def test_dialogues_of_a_task_begin_alike():
    other = dialogue(0, 1)
    other.messages[0]["content"] = "Write sub."
    with pytest.raises(ValueError, match=r"task 'add': its dialogues must begin with the same"):
        cuts(dialogue(0, 1), other)


def test_the_command_writes_what_the_task_jsonl_reads(tmp_path, capsys):
    path, to = tmp_path / "dialogues.jsonl", tmp_path / "prompts.jsonl"
    further = {"tests": "\n".join(PUBLIC), "functions": ["add"], "stub": ""}
    rows = [ROW | further | {"task": f"add {i}"} for i in range(20)]
    for i, row in enumerate(rows):
        row["messages"] = [{"role": "user", "content": f"{ASKED} ({i})"}, *messages(2)[1:]]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = str(ROOT / "configs" / "quickstart.yaml")
    settings = ["data.chat=never", "data.max_prompt_tokens=110"]
    said = [*settings, "--to", str(to), "--swapped", "0"]
    assert cli.main(["dialogues", config, str(path), *said]) == 0
    assert capsys.readouterr().out.startswith("40 prompts of 20 tasks from 20 dialogues (0 prompts")
    file = ["data.task=jsonl", f"data.path={to}", "data.options={}"]
    cfg = config_io.load(config, ["reward.functions=[{name: cobalt}]", *file, *settings])
    task = load_task(cfg.data)
    found = [*task.train, *task.heldout]
    assert len(found) == 40
    assert {example.columns["prev_best"] for example in found} == {0}
    assert all(example.columns["functions"] == ["add"] for example in found)
    few = ["data.chat=never", "data.max_prompt_tokens=70", "--to", str(to)]
    assert cli.main(["dialogues", config, str(path), *few]) == 0
    assert capsys.readouterr().out.startswith("20 prompts")  # the tasks alone
    assert cli.main(["dialogues", config, str(path), "--to", str(to), "--swapped", "2"]) == 2
    assert "--swapped: must be from 0 to 1" in capsys.readouterr().err


def test_dialogues_are_kept_whose_ranges_differ_most():
    assert varied([1, 0.5, 0.1, 0.8, None, None, 0.4]) == [2, 6, 3, 0]
    assert varied([0.3, None, 0.1]) == [2, 0]
    assert varied([]) == []


@given(st.lists(st.none() | FRACTIONS, max_size=16), st.integers(1, 5))
def test_what_is_kept_differs_no_less_than_the_smallest_ranges(ranges, most):
    kept = varied(ranges, most)
    usable = sorted(d for d in ranges if d is not None)
    assert len(set(kept)) == len(kept) == min(most, len(usable))
    if kept:
        chosen = [ranges[i] for i in kept]
        assert np.var(chosen) >= np.var(usable[:most]) - 1e-12
