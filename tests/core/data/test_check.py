"""The check of data reports everything at once, and its errors are those that stop a run."""

import json

import pytest

from jgrpo import cli, config_io
from jgrpo.data.check import check
from jgrpo.models.load import load


@pytest.fixture(scope="module")
def tokenizer():
    return load("tiny").tokenizer


def _config(folder, rows, *overrides, heldout=()):
    """A config on a file of rows; strings are written as they are."""
    paths = {"path": folder / "d.jsonl", "heldout_path": folder / "held.jsonl"}
    for path, part in zip(paths.values(), (rows, heldout), strict=True):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in part]
        path.write_text("".join(f"{line}\n" for line in lines))
    config = folder / "c.yaml"
    config.write_text(
        f"model: {{path: tiny}}\nrun: {{dir: {folder}/run, steps: 1}}\n"
        f"data: {{task: jsonl, path: {paths['path']}, max_prompt_tokens: 8}}\n"
        "reward: {functions: [{name: number_match}]}\n"
    )
    more = [f"data.heldout_path={paths['heldout_path']}"] if heldout else []
    return config, [*more, *overrides]


def _check(folder, tokenizer, rows, *overrides, heldout=()):
    config, words = _config(folder, rows, *overrides, heldout=heldout)
    report = check(config_io.load(config, words), tokenizer)
    return report, [(f.kind, f.place.rpartition("/")[2]) for f in report.findings]


FINE = [{"prompt": f"{i}+1=?", "answer": str(i + 1)} for i in range(20)]


def test_good_data_has_no_findings(tmp_path, tokenizer):
    report, found = _check(tmp_path, tokenizer, FINE)
    assert found == []
    assert report.errors == 0
    assert sum(report.num_rows.values()) == 20
    assert report.longest_prompt_tokens == 6
    assert "nothing stops a run" in report.summary()


def test_every_bad_row_of_both_splits_is_named_and_errors_come_first(tmp_path, tokenizer):
    held = [{"prompt": "5+5=?", "answer": "10"}, {"promt": 1}]
    report, found = _check(tmp_path, tokenizer, [*FINE, FINE[3], "[", {"prompt": ""}], heldout=held)
    assert found == [
        ("bad row", "d.jsonl:22"),
        ("bad row", "d.jsonl:23"),
        ("bad row", "held.jsonl:2"),
        ("repeated", "d.jsonl:21"),
    ]
    assert report.errors == 3
    assert report.num_rows == {"train": 21, "heldout": 1}
    assert report.num_prompts == {"train": 20, "heldout": 1}


def test_long_prompts_and_those_without_a_template_are_found(tmp_path, tokenizer):
    chat = [{"role": "user", "content": "1+1"}]
    report, found = _check(tmp_path, tokenizer, [*FINE, {"prompt": "1+1+1+1=?"}, {"prompt": chat}])
    assert ("prompt", "d.jsonl:21") in found
    assert report.longest_prompt_tokens == 9
    (message,) = [f.message for f in report.findings if f.place.endswith(":21")][:1]
    assert "1 to 8 tokens, got 9" in message
    assert (("prompt", "d.jsonl:22") in found) == (tokenizer.chat_template is None)


def test_a_prompt_in_both_files_is_reported_but_does_not_stop_a_run(tmp_path, tokenizer):
    report, found = _check(tmp_path, tokenizer, FINE, heldout=[FINE[4], FINE[5] | {"prompt": "9"}])
    assert found == [("in both splits", "held.jsonl:1")]
    assert report.findings[0].message.endswith("d.jsonl:5")
    assert report.errors == 0


def test_columns_that_rewards_need_and_empty_answers_are_found(tmp_path, tokenizer):
    countdown = "reward.functions=[{name: countdown}, {name: number_match}]"
    rows = [row | {"target": 1} for row in FINE[:10]] + [{"prompt": "7"}]
    report, found = _check(tmp_path, tokenizer, rows, countdown, heldout=rows[:1])
    assert sorted(kind for kind, _ in found) == [
        *("empty answer", "gaps in column", "in both splits"),
        *("missing column", "missing column"),
    ]
    places = {f.kind: f.place.rpartition("/")[2] for f in report.findings}
    assert places["gaps in column"] == places["empty answer"] == "d.jsonl:11"
    assert report.errors == 2


def test_worked_solutions_are_needed_by_methods_that_learn_from_them(tmp_path, tokenizer):
    rows = [row | {"solution": "#2"} for row in FINE[:-1]] + [FINE[-1]]
    words = ("method=sft", "rollout.group_size=1")
    _, found = _check(tmp_path, tokenizer, rows, *words)
    assert found == [("no solution", "d.jsonl:20")]


def test_data_without_any_reward_is_an_error_of_the_config(tmp_path, tokenizer):
    report, found = _check(tmp_path, tokenizer, FINE, "reward.functions=[]")
    assert found == [("reward", "reward.functions")]
    assert report.errors == 1


def test_generated_task_is_looked_at_in_part(tokenizer, root):
    cfg = config_io.load(root / "configs" / "quickstart.yaml")
    report = check(cfg, tokenizer)
    assert report.num_rows == {"train": 1000, "heldout": 512}
    assert report.findings == ()


def test_command_shows_fifty_findings_and_exits_with_2(tmp_path, capsys):
    config, words = _config(tmp_path, [*FINE, *["["] * 60])
    assert cli.main(["data", "check", str(config), *words]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert sum("d.jsonl:" in line for line in lines) == 50
    assert "... and 10 more (--json lists all)" in lines
    assert cli.main(["data", "check", str(config), "--json", *words]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["findings"]) == printed["errors"] == printed["counts"]["bad row"] == 60


def test_command_exits_with_0_on_good_data_and_names_a_missing_config(tmp_path, capsys):
    config, words = _config(tmp_path, FINE)
    assert cli.main(["data", "check", str(config), *words]) == 0
    with pytest.raises(SystemExit):
        cli.main(["data", "check"])
    assert "name a config" in capsys.readouterr().err
