"""Files of examples: fields, errors that name the place, the fixed tenth, GSM8K."""

import gzip
import json
import re
import sys

import pytest

from jgrpo.config import ColumnsConfig, DataConfig
from jgrpo.data.sources import parse
from jgrpo.data.tasks import load_task


def _write(path, rows):
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return str(path)


def _load(path, **settings):
    return load_task(DataConfig(task="jsonl", path=str(path), **settings))


def _rows(task):
    return {str(e.prompt): e for source in (task.train, task.heldout) for e in source}


def test_fields_become_prompt_answer_solution_and_columns(tmp_path):
    rows = [{"q": f"q{i}", "a": i, "solution": "s", "level": 2.5} for i in range(50)]
    task = _load(_write(tmp_path / "d.jsonl", rows), columns=ColumnsConfig(prompt="q", answer="a"))
    example = _rows(task)["q7"]
    assert (example.answer, example.solution) == ("7", "s")
    assert example.columns == {"a": 7, "solution": "s", "level": 2.5}


def test_answer_may_be_absent_or_a_number(tmp_path):
    rows = [{"prompt": "x"}, {"prompt": "y", "answer": 5.0}, {"prompt": "z", "answer": 0.5}]
    found = _rows(_load(_write(tmp_path / "d.jsonl", rows)))
    assert [found[key].answer for key in "xyz"] == ["", "5", "0.5"]


def test_messages_are_a_chat(tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": messages}, {"prompt": "plain"}]
    assert _rows(_load(_write(tmp_path / "d.jsonl", rows)))[str(messages)].prompt == messages


def test_gzipped_file_and_folder_are_read(tmp_path):
    _write(tmp_path / "a.jsonl", [{"prompt": f"a{i}"} for i in range(10)])
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"prompt": f"b{i}"}) + "\n" for i in range(10)))
    (tmp_path / "notes.txt").write_text("not data")
    assert len(_rows(_load(tmp_path))) == 20
    assert len(_rows(_load(tmp_path / "b.jsonl.gz"))) == 10


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": ', "not valid JSON"),
        ("[1]", "must be a JSON object"),
        ({"promt": "x"}, "no field 'prompt'.* did you mean 'promt'"),
        ({"prompt": ""}, "field 'prompt' must be a text that is not empty"),
        ({"prompt": [{"role": "user"}]}, "list of messages"),
        ({"prompt": 3}, "field 'prompt' must be"),
        ({"prompt": "x", "answer": [1]}, "field 'answer' must be a text or a number"),
        ({"prompt": "x", "completions": 1}, "name of an argument of reward functions"),
    ],
)
def test_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    path = _write(tmp_path / "d.jsonl", [{"prompt": "fine"}, "", row])
    with pytest.raises(ValueError, match=f"{re.escape(path)}:3: .*{message}"):
        _load(path)


def test_a_tenth_is_held_out_by_content_whatever_the_order(tmp_path):
    rows = [{"prompt": f"p{i}"} for i in range(1000)]
    one = _load(_write(tmp_path / "a.jsonl", rows))
    two = _load(_write(tmp_path / "b.jsonl", rows[::-1] + rows[:300]))
    held = {e.prompt for e in one.heldout}
    assert 70 < len(held) < 130
    assert held == {e.prompt for e in two.heldout}
    assert not held & {e.prompt for e in two.train}
    assert len(two.train) + len(two.heldout) == 1300


def test_small_file_still_has_a_heldout_prompt(tmp_path):
    for count in range(2, 12):
        task = _load(_write(tmp_path / "d.jsonl", [{"prompt": f"p{i}"} for i in range(count)]))
        assert len(task.heldout) >= 1
        assert len(task.train) >= 1


def test_file_with_one_prompt_needs_a_heldout_path(tmp_path):
    path = _write(tmp_path / "d.jsonl", [{"prompt": "only"}] * 3)
    with pytest.raises(ValueError, match=r"data.heldout_path"):
        _load(path)
    assert len(_load(path, heldout_path=path).train) == 3


@pytest.mark.parametrize("key", ["path", "heldout_path"])
def test_empty_file_is_named_by_its_key(tmp_path, key):
    full = _write(tmp_path / "full.jsonl", [{"prompt": "x"}])
    empty = _write(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match=f"data.{key}: .*empty.jsonl' has no rows"):
        load_task(DataConfig(**{"task": "jsonl", "path": full, "heldout_path": full, key: empty}))


def test_missing_file_and_path_are_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        _load("nowhere.jsonl")
    with pytest.raises(ValueError, match=r"data.path: must name the data for task 'jsonl'"):
        _load("")


def test_gsm8k_row_by_hand(tmp_path):
    worked = "3*5=<<3*5=15>>15 apples.\n1,000+15=<<1000+15=1015>>1,015\n#### 1,015"
    row = {"question": "How many?", "answer": worked}
    path = _write(tmp_path / "d.jsonl", [row])
    example = load_task(DataConfig(task="gsm8k", path=path, heldout_path=path)).train[0]
    assert example.answer == "1015"
    assert example.solution == "3*5=15 apples.\n1,000+15=1,015\n#### 1,015"
    assert example.prompt[0]["content"].startswith("How many?\n")
    assert example.columns["num_steps"] == 2


def test_gsm8k_refuses_other_files_and_columns(tmp_path):
    path = _write(tmp_path / "d.jsonl", [{"question": "x", "answer": "5"}])
    with pytest.raises(ValueError, match=r"d.jsonl:1: a row of GSM8K must have"):
        load_task(DataConfig(task="gsm8k", path=path))
    with pytest.raises(ValueError, match=r"data.columns: has no effect on task 'gsm8k'"):
        load_task(DataConfig(task="gsm8k", path=path, columns=ColumnsConfig(prompt="q")))


def test_every_answer_of_gsm8k_is_a_whole_number(shared):
    folder = shared / "data" / "gsm8k"
    task = load_task(
        DataConfig(
            task="gsm8k", path=f"{folder}/train.jsonl.gz", heldout_path=f"{folder}/test.jsonl"
        )
    )
    assert (len(task.train), len(task.heldout)) == (7473, 1319)
    for source in (task.train, task.heldout):
        for example in source:
            assert re.fullmatch(r"-?[0-9]+", example.answer)
            assert "<<" not in example.solution
            assert re.fullmatch(task.format_pattern, example.solution)


def test_first_bad_row_says_how_many_more_there_are(tmp_path):
    rows = [{"prompt": "fine"}, {"promt": 1}, "[", {"prompt": ""}]
    path = _write(tmp_path / "d.jsonl", rows)
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: ") + r".*2 more bad rows.*check"):
        _load(path)


@pytest.mark.parametrize("value", [float("nan"), True, [1], {"a": 1}])
def test_answer_that_is_no_text_or_number_is_refused(value):
    ((place, bad),) = parse([("here", {"prompt": "x", "answer": value})], ColumnsConfig())
    assert place == "here"
    assert "field 'answer' must be a text or a number" in bad.message


USER = {"role": "user", "content": "hi"}
TRL_ROWS = {
    "standard": ({"prompt": "The sky is"}, "The sky is", {}),
    "conversational": ({"prompt": [USER]}, [USER], {}),
    "reference columns": (
        {"prompt": "1+1", "solution": "2", "ground_truth": [2]},
        "1+1",
        {"solution": "2", "ground_truth": [2]},
    ),
    "prompt-completion": (
        {"prompt": "The sky is", "completion": " blue.", "completion_ids": [1]},
        "The sky is",
        {},
    ),
    "preference": (
        {"prompt": [USER], "chosen": [USER], "rejected": [USER]},
        [USER],
        {"chosen": [USER], "rejected": [USER]},
    ),
    "unpaired preference": (
        {"prompt": "x", "completion": "y", "label": True},
        "x",
        {"label": True},
    ),
    "several messages, the last begun": (
        {"prompt": [{"role": "system", "content": ""}, USER, {**USER, "role": "assistant"}]},
        [{"role": "system", "content": ""}, USER, {**USER, "role": "assistant"}],
        {},
    ),
    "content in parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}]},
        [{"role": "user", "content": "ab"}],
        {},
    ),
    "keys that Arrow fills with null": (
        {
            "prompt": [{**USER, "tool_calls": None, "name": None}],
            "images": None,
            "image": None,
            "tools": [],
        },
        [USER],
        {"images": None, "image": None, "tools": []},
    ),
}


@pytest.mark.parametrize("form", TRL_ROWS)
def test_rows_written_for_trl_load_unchanged(form):
    row, prompt, columns = TRL_ROWS[form]
    ((_, example),) = parse([("here", row)], ColumnsConfig())
    assert example.prompt == prompt
    assert example.columns == columns


PICTURE = {"type": "image", "image": "x"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": [{"role": "user", "content": [PICTURE]}]}, r"images.* not supported.*'image'"),
        ({"prompt": "x", "images": ["a.png"]}, "field 'images': images cannot be part"),
        ({"prompt": "x", "image": {"path": "a.png"}}, "field 'image': images cannot be part"),
        ({"prompt": "x", "tools": [{"name": "f"}]}, "field 'tools': .*tools"),
        ({"prompt": "x", "chat_template_kwargs": {"a": 1}}, "field 'chat_template_kwargs'"),
        (
            {"prompt": [USER, {"role": "assistant", "tool_calls": [{}]}]},
            r"prompt\[1\]': calls of tools .*tool_calls",
        ),
        ({"prompt": [{"role": "tool", "content": "4"}]}, "calls of tools .*'tool'"),
        ({"prompt": [{**USER, "name": "Ann"}]}, r"prompt\[0\].name'.*take 'name' out"),
        ({"prompt": [{"from": "human", "value": "x"}]}, "ShareGPT"),
        ({"prompt": [{"role": "user", "content": ""}]}, "must be a text that is not empty"),
        ({"prompt": [{"role": "user", "content": None}]}, r"content' of a list of messages"),
        ({"prompt": ["x"]}, "a list of messages"),
        ({"messages": [USER]}, r"no field 'prompt'.*did you mean one of messages\?"),
        ({"chosen": "a", "rejected": "b"}, r"no field 'prompt'.*chosen, rejected"),
        ({"prompt": "x", "prompts": 1}, "name of an argument of reward functions"),
        ({"prompt": "half \ud83d"}, "half of a character"),
        ({"prompt": "x", "solution": "\ud83d"}, "field 'solution' .*half of a character"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row, message):
    ((_, bad),) = parse([("here", row)], ColumnsConfig())
    assert re.search(message, bad.message), bad.message


def test_answer_may_be_read_from_a_column_that_is_otherwise_left_out():
    columns = ColumnsConfig(answer="completion")
    ((_, example),) = parse([("here", {"prompt": "x", "completion": "y"})], columns)
    assert example.answer == "y"
    assert example.columns == {"completion": "y"}


def test_parquet_is_read(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    rows = [{"prompt": f"p{i}", "answer": i, "tags": ["a"]} for i in range(20)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    found = _rows(load_task(DataConfig(task="parquet", path=str(tmp_path))))
    assert found["p3"].answer == "3"
    assert found["p3"].columns["tags"] == ["a"]


def test_dataset_is_read_from_a_folder(tmp_path):
    pytest.importorskip("datasets")
    _write(tmp_path / "train.jsonl", [{"prompt": f"p{i}", "answer": str(i)} for i in range(20)])
    _write(tmp_path / "test.jsonl", [{"prompt": "t", "answer": "1"}])
    options = {"heldout_split": "test"}
    task = load_task(DataConfig(task="hf", path=str(tmp_path), options=options))
    assert (len(task.train), [e.prompt for e in task.heldout]) == (20, ["t"])
    with pytest.raises(ValueError, match=r"data.heldout_path: .*heldout_split"):
        load_task(DataConfig(task="hf", path=str(tmp_path), heldout_path="x"))


def test_dataset_saved_to_disk_is_read_with_and_without_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": [USER, {**USER, "content": f"p{i}"}], "level": i} for i in range(20)]
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"a": one, "b": one.select(range(2))}).save_to_disk(tmp_path / "two")
    task = load_task(DataConfig(task="hf", path=f"{tmp_path}/one"))
    assert len(task.train) + len(task.heldout) == 20
    assert task.train[0].prompt[0] == USER
    assert set(task.train[0].columns) == {"level"}
    options = {"split": "a", "heldout_split": "b"}
    task = load_task(DataConfig(task="hf", path=f"{tmp_path}/two", options=options))
    assert (len(task.train), len(task.heldout)) == (20, 2)
    with pytest.raises(ValueError, match=r"data.options.split: must be one of a, b .*'train'"):
        load_task(DataConfig(task="hf", path=f"{tmp_path}/two"))


def test_dataset_of_pictures_and_a_single_file_are_refused_by_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "photos": datasets.List(datasets.Image())}
    )
    rows = {"prompt": ["x"], "photos": [[]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"column 'photos' holds image data"):
        load_task(DataConfig(task="hf", path=f"{tmp_path}/saved"))
    path = _write(tmp_path / "d.jsonl", [{"prompt": "x"}])
    with pytest.raises(ValueError, match=r"is a file; read it with data.task=jsonl"):
        load_task(DataConfig(task="hf", path=path))


@pytest.mark.parametrize(("task", "package"), [("parquet", "pyarrow"), ("hf", "datasets")])
def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, task, package):
    monkeypatch.setitem(sys.modules, package, None)  # what importing a missing package meets
    with pytest.raises(ImportError, match=rf"{package}: pip install 'jgrpo\[hf\]'"):
        load_task(DataConfig(task=task, path=str(tmp_path)))
