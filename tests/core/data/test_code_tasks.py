"""HumanEval and MBPP: what becomes of a row, the splits, and that the reward takes it."""

import ast
import json
import re

import pytest

from jgrpo import config_io
from jgrpo.config import DataConfig
from jgrpo.data.check import check
from jgrpo.data.tasks import load_task
from jgrpo.models.load import load
from jgrpo.rewards.code import code_tests, instrument, program_of

STUB = (
    "from math import pi\n\ndef half(x):\n    return x / 2\n\n\ndef area(r: float) -> float:\n"
    '    """The area of a circle."""\n'
)
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": STUB,
    "entry_point": "area",
    "canonical_solution": "    return pi * r * r\n",
    "test": "def check(candidate):\n    assert abs(half(candidate(1.0)) - pi / 2) < 1e-6\n",
}
MBPP = {
    "task_id": 601,
    "text": "Write a function to add two numbers.",
    "code": "def plus(a, b):\r\n  return a + b\r\ndef add(a, b):\r\n  return plus(a, b)",
    "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1)==0"],
    "test_setup_code": "zero = 0",
    "challenge_test_list": [],
}


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _humaneval(tmp_path, rows=(HUMANEVAL,), **options):
    path = _write(tmp_path / "h.jsonl", rows)
    return load_task(
        DataConfig(task="humaneval", path=path, heldout_path=path, options=options)
    ).train


def _mbpp(tmp_path, *rows, **options):
    return load_task(
        DataConfig(task="mbpp", path=_write(tmp_path / "m.jsonl", rows), options=options)
    )


def _score(example, completion):
    names = ("tests", "functions", "stub")
    columns = {name: [example.columns[name]] for name in names}
    return code_tests(completions=[completion], **columns)[0]


def test_humaneval_row_by_hand(tmp_path):
    (example,) = _humaneval(tmp_path)
    assert example.prompt[0]["content"].endswith(f"```python\n{STUB}```")
    assert example.columns["functions"] == ["area"]
    assert example.columns["stub"] == STUB
    assert example.columns["task_id"] == "HumanEval/0"
    assert example.solution == f"```python\n{STUB}    return pi * r * r\n```"


def test_helpers_of_the_prompt_judge_whatever_the_program_calls_so(tmp_path):
    """A program that makes `half` agree with itself: the test uses the half of the prompt."""
    pytest.importorskip("pydantic_monty")
    (example,) = _humaneval(tmp_path)
    tests = ast.parse(example.columns["tests"])
    assert [item.name for item in tests.body if isinstance(item, ast.FunctionDef)] == [
        *("half", "check")
    ]
    cheat = "```python\ndef half(x): return 3.141592653589793 / 2\ndef area(r): return 0.0\n```"
    assert _score(example, cheat) == 0.0
    assert _score(example, example.solution) == 1.0


def test_stub_style_is_continued(tmp_path):
    pytest.importorskip("pydantic_monty")
    (example,) = _humaneval(tmp_path, style="stub")
    assert example.prompt == STUB
    assert example.solution == "    return pi * r * r\n"
    assert _score(example, example.solution) == 1.0
    assert _score(example, "    return r\n") == 0.0


def test_humaneval_alone_is_split_by_content(tmp_path):
    rows = [HUMANEVAL | {"prompt": STUB.replace("circle", f"circle {i}")} for i in range(40)]
    path = _write(tmp_path / "h.jsonl", rows)
    task = load_task(DataConfig(task="humaneval", path=path))
    held = {example.columns["stub"] for example in task.heldout}
    assert 0 < len(held) < 20
    assert not held & {example.columns["stub"] for example in task.train}
    assert [reward.name for reward in task.rewards] == ["code_tests"]


def test_mbpp_row_by_hand(tmp_path):
    task = _mbpp(tmp_path, MBPP, MBPP | {"task_id": 11})
    (example,) = task.train
    text = example.prompt[0]["content"]
    assert text.startswith("Write a function to add two numbers. Reply with one Python code block")
    assert text.endswith("```python\nassert add(1, 2) == 3\n```")
    assert example.columns["tests"] == "zero = 0\nassert add(1, 2) == 3\nassert add(-1, 1)==0"
    assert example.columns["functions"] == ["add"]
    assert "\r" not in example.solution
    assert [reward.name for reward in task.rewards] == ["code_tests"]


def test_mbpp_shows_as_many_tests_as_asked(tmp_path):
    task = _mbpp(tmp_path, MBPP, MBPP | {"task_id": 11}, shown_tests=2)
    assert task.train[0].prompt[0]["content"].endswith("== 3\nassert add(-1, 1)==0\n```")


def test_mbpp_goes_by_its_official_splits(tmp_path):
    rows = [MBPP | {"task_id": number} for number in (10, 11, 510, 511, 600, 601, 974)]
    for split, numbers in (("test", [11, 510]), ("validation", [511, 600])):
        task = _mbpp(tmp_path, *rows, heldout_split=split)
        assert [example.columns["task_id"] for example in task.train] == [601, 974]
        assert [example.columns["task_id"] for example in task.heldout] == numbers


@pytest.mark.parametrize(
    "code",
    [
        "class add:\n    pass",
        "class Pair:\n    pass\ndef add(a, b): return Pair()",
        "import sys\ndef add(a, b): return a",
    ],
)
def test_mbpp_row_whose_tests_need_more_than_functions_is_left_out(tmp_path, code):
    odd = MBPP | {"code": code, "test_list": ["assert add(1, Pair(2), sys.x) == 3"]}
    task = _mbpp(tmp_path, odd | {"task_id": 602}, MBPP, MBPP | {"task_id": 11})
    assert [example.columns["task_id"] for example in task.train] == [601]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"entry_point": ""}, "a row of HumanEval must have texts 'prompt', 'entry_point'"),
        ({"test": 3}, "must have texts"),
        ({"prompt": "def area(:"}, "no valid Python in a row"),
    ],
)
def test_bad_row_of_humaneval_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"h\.jsonl:2: .*{message}"):
        _humaneval(tmp_path, [HUMANEVAL, HUMANEVAL | row])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None}, "a row of MBPP must have texts 'text', 'code'"),
        ({"task_id": "1"}, "must have a number 'task_id' and a list 'test_list'"),
        ({"test_list": []}, "must have a number 'task_id' and a list 'test_list'"),
        ({"test_list": ["assert add("]}, "no valid Python in a row"),
    ],
)
def test_bad_row_of_mbpp_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"m\.jsonl:2: .*{message}"):
        _mbpp(tmp_path, MBPP, MBPP | row)


def test_settings_without_effect_are_refused(tmp_path):
    path = _write(tmp_path / "m.jsonl", [MBPP])
    with pytest.raises(ValueError, match=r"data.heldout_path: .*data.options.heldout_split"):
        load_task(DataConfig(task="mbpp", path=path, heldout_path=path))
    with pytest.raises(ValueError, match=r"data.path: must hold all of MBPP .* got 1 rows"):
        load_task(DataConfig(task="mbpp", path=path))
    with pytest.raises(ValueError, match=r"data.options.style: .*'chat' or 'stub'"):
        _humaneval(tmp_path, style="bare")
    with pytest.raises(ValueError, match=r"data.options.shown_tests"):
        _mbpp(tmp_path, MBPP, shown_tests=4)


def test_every_row_of_the_datasets_is_ready_for_the_reward(shared):
    """Programs are found in the solutions, and tests are understood; none is run here."""
    files = {"humaneval": "humaneval/HumanEval.jsonl.gz", "mbpp": "mbpp/mbpp.jsonl.gz"}
    counts = {}
    for name, file in files.items():
        path = shared / "data" / file
        if not path.exists():
            pytest.skip(f"needs {path}")
        task = load_task(DataConfig(task=name, path=str(path)))
        counts[name] = (len(task.train), len(task.heldout))
        for example in (*task.train, *task.heldout):
            functions, stub = example.columns["functions"], example.columns["stub"]
            instrument(example.columns["tests"], functions)
            program = program_of(example.solution or "", functions, stub)
            for function in functions:
                assert re.search(rf"^def +{function} *\(", program, re.MULTILINE)
            json.dumps(dict(example.columns))
    assert counts["mbpp"] == (372, 499)
    assert sum(counts["humaneval"]) == 164


@pytest.mark.parametrize("task_id", [604, 613, 625, 700, 850])
def test_reference_solutions_of_mbpp_pass_and_others_do_not(shared, task_id):
    pytest.importorskip("pydantic_monty")
    path = shared / "data" / "mbpp" / "mbpp.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    task = load_task(DataConfig(task="mbpp", path=str(path)))
    (example,) = (row for row in task.train if row.columns["task_id"] == task_id)
    assert _score(example, example.solution) == 1.0
    (name,) = example.columns["functions"]
    assert _score(example, f"```python\ndef {name}(*items): return None\n```") == 0.0


def test_a_check_names_every_bad_row_of_both_datasets(tmp_path):
    bad = [{"text": ""}, {"prompt": 1}]
    tokenizer = load("tiny").tokenizer

    def found(task, rows):
        path = _write(tmp_path / f"{task}.jsonl", rows)
        words = [f"data.task={task}", f"data.path={path}", "data.max_prompt_tokens=100000"]
        config = tmp_path / "c.yaml"
        config.write_text("model: {path: tiny}\nrun: {dir: none, steps: 1}\n")
        report = check(config_io.load(config, words), tokenizer)
        places = [f.place.rpartition(":")[2] for f in report.findings if f.kind == "bad row"]
        return places, report.num_rows

    rows = [MBPP, bad[0], MBPP | {"task_id": 11}, MBPP | {"task_id": 520}, bad[1]]
    assert found("mbpp", rows) == (["2", "5"], {"train": 1, "heldout": 1})
    many = [HUMANEVAL | {"prompt": f"# {i}\n{STUB}"} for i in range(20)]
    places, num_rows = found("humaneval", [*many, bad[0], bad[1]])
    assert places == ["21", "22"]
    assert sum(num_rows.values()) == 20
