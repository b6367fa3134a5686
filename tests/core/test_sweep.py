"""Sweep files: what they expand to, what they refuse, and what counts as finished."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jgrpo import cli, config_io
from jgrpo.sweep.file import Distribution, Draws, read
from jgrpo.sweep.plan import draw, expand
from jgrpo.sweep.runs import signals_passed_on
from jgrpo.sweep.study import Study
from jgrpo.sweep.table import failure_file, look, rows, write_tables

BASE = """\
model: {path: tiny}
data: {task: chain, num_prompts_per_step: 8}
optim:
  lr: 1e-4
run: {dir: unused, steps: 2}
"""


def _file(folder: Path, *lines: str) -> Path:
    """Writes a base config and a sweep whose lines 3 and on are given."""
    (folder / "base.yaml").write_text(BASE)
    path = folder / "sweep.yaml"
    path.write_text("\n".join(["base: base.yaml", f"dir: {folder}/runs", *lines]) + "\n")
    return path


def _runs(folder: Path, *lines: str, overrides=()):
    return expand(read(_file(folder, *lines)), overrides)


def _problems(folder: Path, *lines: str, overrides=()) -> list[str]:
    with pytest.raises(config_io.ConfigError) as caught:
        _runs(folder, *lines, overrides=overrides)
    assert caught.value.source == str(folder / "sweep.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_grid_zip_and_seeds_multiply_with_the_seed_fastest(tmp_path):
    runs = _runs(
        tmp_path,
        "grid: {optim.lr: [1e-4, 3e-4]}",
        "zip: {optim.beta1: [0.8, 0.9], optim.beta2: [0.95, 0.99]}",
        "seeds: [0, 7]",
    )
    found = [(r.cfg.optim.lr, r.cfg.optim.beta1, r.cfg.optim.beta2, r.cfg.run.seed) for r in runs]
    assert found == [
        (lr, beta1, beta2, seed)
        for lr in (1e-4, 3e-4)
        for beta1, beta2 in ((0.8, 0.95), (0.9, 0.99))
        for seed in (0, 7)
    ]
    assert [run.index for run in runs] == list(range(8))


def test_folders_are_named_after_settings_and_lie_in_that_of_the_sweep(tmp_path):
    runs = _runs(tmp_path, "grid: {optim.lr: [1e-5], method: [dr_grpo]}", "seeds: [3]")
    assert runs[0].name == "lr=1e-05_method=dr_grpo_seed=3"
    assert runs[0].cfg.run.dir == f"{tmp_path}/runs/{runs[0].name}"
    assert runs[0].cfg.method.name == "dr_grpo"


def test_values_of_every_kind_reach_the_config_as_they_are(tmp_path):
    lines = (
        "grid:",
        "  rollout.stop: [[], ['a b', '1e-6']]",
        "  data.system_prompt: ['true', 'be: brief']",
        "  data.shuffle: [true]",
        "  optim.lr: [0.00012345678]",
        "  data.options: [{min_terms: 2}]",
    )
    runs = _runs(tmp_path, *lines)
    assert [run.cfg.rollout.stop for run in runs[::2]] == [(), ("a b", "1e-6")]
    assert [run.cfg.data.system_prompt for run in runs[:2]] == ["true", "be: brief"]
    assert runs[0].cfg.optim.lr == 0.00012345678
    assert runs[0].cfg.data.options == {"min_terms": 2}
    assert len({run.name for run in runs}) == 4
    for run in runs:
        assert set(run.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.=+-")


def test_names_do_not_change_when_the_file_grows(tmp_path):
    few = _runs(tmp_path, "grid: {optim.lr: [1e-4]}", "seeds: [0]")
    more = _runs(tmp_path, "grid: {optim.lr: [5e-5, 1e-4]}", "seeds: [1, 0]")
    assert few[0].name in {run.name for run in more}


def test_equal_combinations_run_once(tmp_path):
    lines = ("random: {count: 40, keys: {rollout.group_size: {int: [2, 4]}}}",)
    runs = _runs(tmp_path, *lines)
    assert sorted(run.cfg.rollout.group_size for run in runs) == [2, 3, 4]


def test_random_values_depend_on_seed_key_and_number_alone(tmp_path):
    lr, size = Distribution("log_uniform", (1e-5, 1e-3)), Distribution("int", (2, 9))
    one = Draws(count=3, seed=5, keys={"optim.lr": lr})
    two = Draws(count=99, seed=5, keys={"rollout.group_size": size, "optim.lr": lr})
    for index in range(20):
        assert draw(one, index)["optim.lr"] == draw(two, index)["optim.lr"]
    other = Draws(count=3, seed=6, keys={"optim.lr": lr})
    assert draw(one, 0) != draw(other, 0)
    # The very numbers: a sweep continues on another machine or version.
    assert draw(one, 0) == {"optim.lr": 0.0002813}


@pytest.mark.parametrize(
    ("spread", "shares", "values"),
    [
        (Distribution("uniform", (0.0, 8.0)), (0.0, 0.25, 0.75), (0.0, 2.0, 6.0)),
        (Distribution("log_uniform", (1e-4, 1e-2)), (0.0, 0.5, 0.25), (1e-4, 1e-3, 3.162e-4)),
        (Distribution("int", (2, 4)), (0.0, 0.34, 0.999), (2, 3, 4)),
        (Distribution("choice", ("a", "b")), (0.0, 0.49, 0.5), ("a", "a", "b")),
        (Distribution("uniform", (0.12345, 0.12346)), (0.0, 0.5), (0.12345, 0.123455)),
    ],
)
def test_distributions_by_hand(spread, shares, values):
    assert tuple(spread.at(share) for share in shares) == values


def test_random_values_fill_their_range(tmp_path):
    draws = Draws(count=1, seed=0, keys={"x": Distribution("uniform", (0, 1))})
    found = [draw(draws, index)["x"] for index in range(1000)]
    assert abs(sum(found) / 1000 - 0.5) < 0.03
    assert max(found) > 0.99
    assert min(found) < 0.01


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (("gird: {optim.lr: [1]}",), "gird (line 3): unknown key; did you mean 'grid'?"),
        ((), "nothing varies; give one of grid, zip, random, seeds, optuna"),
        (("grid: [1]",), "grid (line 3): must be a mapping of dotted config keys, got [1]"),
        (("grid: {optim.lr: 1e-4}",), "grid.optim.lr (line 3): must be a list of values"),
        (("grid: {optim.lr: [1, 1]}",), "grid.optim.lr (line 3): must list each value once"),
        (("zip:", "  a: [1]", "  b: [1, 2]"), "zip (line 3): must have lists of one length"),
        (("seeds: [0, 0]",), "seeds (line 3): must be a list of different whole numbers"),
        (("seeds: [0.5]",), "seeds (line 3): must be a list of different whole numbers"),
        (("seeds: []",), "seeds (line 3): must be a list of different whole numbers"),
        (("grid: {run.seed: [0]}",), "run.seed (line 3): is averaged over; list its values under"),
        (("grid: {run.dir: [a]}",), "run.dir (line 3): is set by the sweep"),
        (("grid: {a: [1]}", "zip: {a: [1]}"), "zip.a (line 4): varies already in grid"),
        (("direction: up", "seeds: [0]"), "direction (line 3): must be maximize or minimize"),
        (("random: {keys: {a: {int: [1, 2]}}}",), "random.count (line 3): must be a whole number"),
        (
            ("random: {count: 1, keys: {a: {normal: [0, 1]}}}",),
            "random.keys.a (line 3): must be one",
        ),
        (
            ("random: {count: 1, keys: {a: {log_uniform: [0, 1]}}}",),
            "two numbers above 0, got [0, 1]",
        ),
        (("random: {count: 1, keys: {a: {int: [2, 1]}}}",), "two whole numbers, got [2, 1]"),
        (("random: {count: 1, keys: {a: {choice: []}}}",), "must be a list of values, got []"),
        (("random: {count: 1, tries: 2, keys: {a: {int: [1, 2]}}}",), "random.tries (line 3)"),
        (
            ("grid: {a: [1]}", "optuna: {n_trials: 2, keys: {b: {int: [1, 2]}}}"),
            "optuna (line 4): chooses the values itself; leave out grid",
        ),
        (("seeds: [0", "x"), "not valid YAML"),
    ],
)
def test_bad_files_are_named_by_line_and_key(tmp_path, lines, problem):
    assert any(problem in found for found in _problems(tmp_path, *lines))


def test_all_problems_of_a_file_are_reported_at_once(tmp_path):
    assert len(_problems(tmp_path, "gird: 1", "seeds: no", "direction: up")) == 3


def test_every_combination_is_checked_and_named_by_the_line_of_its_value(tmp_path):
    found = _problems(
        tmp_path,
        "grid:",
        "  optim.lr:",
        "    - 1e-4",
        "    - -1",
        "  optim.beat1: [0.9]",
        "  rollout.group_size: [1, 4]",
        "seeds: [0, 1]",
    )
    assert len(found) == 3
    assert found[0].startswith("optim.beat1 (line 7): unknown key; did you mean 'beta1'?")
    assert found[0].endswith("(in 8 runs, first lr=0.0001_beat1=0.9_group_size=1_seed=0)")
    assert found[1].startswith("rollout.group_size (line 8): must be at least 2")
    assert "in 2 runs" in found[1]  # the others stop at the learning rate
    assert found[2].startswith("optim.lr (line 6): must be a number of at least 0, got -1")
    assert "in 4 runs" in found[2]


def test_rules_between_settings_are_checked_too(tmp_path):
    (found,) = _problems(tmp_path, "grid: {rollout.group_size: [1, 4]}")
    assert found.startswith("rollout.group_size (line 3): must be at least 2")
    assert found.endswith("(in group_size=1)")


def test_a_problem_of_the_base_is_named_there(tmp_path):
    path = _file(tmp_path, "seeds: [0]")
    (tmp_path / "base.yaml").write_text(BASE + "optmi: {}\n")
    with pytest.raises(config_io.ConfigError, match=r"optmi \(base.yaml line 6\): unknown key"):
        expand(read(path))


def test_missing_base_and_file_are_named(tmp_path):
    path = _file(tmp_path, "seeds: [0]")
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(config_io.ConfigError, match=r"base \(line 1\): must be a config file"):
        read(path)
    with pytest.raises(config_io.ConfigError, match=r"nowhere.yaml: 1 problem"):
        read(tmp_path / "nowhere.yaml")


def test_metric_must_be_one_that_the_runs_have(tmp_path):
    lines = ("metric: eval/pass@8", "seeds: [0]")
    (found,) = _problems(tmp_path, *lines)
    assert found.startswith("metric (line 3): must be one of eval/greedy_accuracy")
    assert len(_runs(tmp_path, *lines, overrides=["eval.samples_per_prompt=8"])) == 1


def test_command_line_changes_all_runs_but_not_what_the_sweep_decides(tmp_path):
    runs = _runs(tmp_path, "grid: {optim.lr: [1, 2]}", overrides=["run.steps=9"])
    assert [run.cfg.run.steps for run in runs] == [9, 9]
    found = _problems(
        tmp_path, "grid: {optim.lr: [1, 2]}", overrides=["optim.lr=3", "run.dir=elsewhere"]
    )
    assert found[0].startswith("command line: optim.lr: varies in the sweep")
    assert found[1].startswith("command line: run.dir: is set by the sweep")


# Outcomes


def _report(accuracy: float) -> dict:
    return {
        "num_prompts": 10,
        "samples_per_prompt": 0,
        "greedy_accuracy": accuracy,
        "greedy_interval": [0.0, 1.0],
        "pass_at": {},
        "pass_at_interval": {},
        "maj_at": {},
        "maj_at_interval": {},
        "length_mean": 3.0,
        "finished_rate": 1.0,
        "format_rate": None,
    }


def _leave(run, *, after: float | None = None, cfg=None) -> None:
    """Leaves what a run leaves behind, finished if `after` is given."""
    folder = Path(run.cfg.run.dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config_io.dump(cfg or run.cfg))
    summary = {"eval_before": _report(0.25)}
    summary |= {} if after is None else {"eval_after": _report(after)}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_status_of_a_run_follows_from_its_folder(tmp_path):
    path = _file(tmp_path, "seeds: [0, 1, 2, 3, 4]")
    sweep = read(path)
    new, cut_off, done, failed, other = expand(sweep)
    _leave(cut_off)
    _leave(done, after=0.75)
    _leave(other, after=0.75, cfg=expand(sweep, ["optim.lr=0.5"])[4].cfg)
    failure_file(sweep, failed).parent.mkdir(parents=True)
    failure_file(sweep, failed).write_text(json.dumps({"exit_code": 2, "error": "no disk"}))
    found = [look(sweep, run) for run in (new, cut_off, done, failed, other)]
    assert [outcome.status for outcome in found] == [
        *("new", "cut off", "done", "failed", "other config")
    ]
    assert [outcome.after for outcome in found] == [None, None, 0.75, None, None]
    assert found[1].before == 0.25
    assert found[3].detail == "exit code 2: no disk"
    assert found[4].detail == "differs in optim.lr"


def test_a_run_that_is_to_have_more_steps_is_not_finished(tmp_path):
    path = _file(tmp_path, "seeds: [0]")
    (run,) = expand(read(path))
    _leave(run, after=0.75)
    (longer,) = expand(read(path), ["run.steps=4"])
    outcome = look(read(path), longer)
    assert (outcome.status, outcome.after) == ("other config", None)


@pytest.mark.parametrize(("direction", "best"), [("maximize", 3e-4), ("minimize", 1e-4)])
def test_settings_are_compared_by_their_mean_over_seeds(tmp_path, direction, best):
    lines = (f"direction: {direction}", "grid: {optim.lr: [1e-4, 3e-4, 9e-4]}", "seeds: [0, 1]")
    sweep = read(_file(tmp_path, *lines))
    runs = expand(sweep)
    for run, after in zip(runs, (0.1, 0.3, 0.5, 0.7), strict=False):
        _leave(run, after=after)
    table = rows(sweep, [look(sweep, run) for run in runs])
    assert table[0].outcomes[0].run.settings == {"optim.lr": best}
    assert table[-1].mean is None
    assert {round(row.mean, 6) for row in table[:2]} == {0.2, 0.6}
    assert table[0].std == pytest.approx(0.2 / 2**0.5)
    write_tables(sweep, runs)
    with (tmp_path / "runs" / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["optim.lr"] == str(best)
    assert [line["num_seeds"] for line in lines] == ["2", "2", "0"]
    assert float(lines[0]["mean"]) == pytest.approx(0.6 if best == 3e-4 else 0.2)
    with (tmp_path / "runs" / "runs.csv").open() as file:
        assert [line["status"] for line in csv.DictReader(file)] == [*["done"] * 4, *["new"] * 2]


# The command


def test_plan_prints_runs_and_writes_nothing(tmp_path, capsys):
    path = _file(tmp_path, "grid: {optim.lr: [1e-4, 3e-4]}")
    assert cli.train_main(["--sweep", str(path), "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "2 runs" in shown
    assert shown.count("new") == 2
    assert not (tmp_path / "runs").exists()


def test_bad_combination_and_index_end_in_exit_code_2_before_anything_runs(tmp_path, capsys):
    path = _file(tmp_path, "grid: {optim.lr: [1e-4, -1]}")
    assert cli.train_main(["--sweep", str(path)]) == 2
    assert "optim.lr (line 3): must be" in capsys.readouterr().err
    path = _file(tmp_path, "grid: {optim.lr: [1e-4]}")
    assert cli.train_main(["--sweep", str(path), "--index", "1"]) == 2
    assert "--index: must be 0 to 0" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words", [[], ["--plan", "c.yaml"], ["--sweep", "s.yaml", "--check"], ["--index", "0", "c"]]
)
def test_words_that_do_not_go_together_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.train_main(words)
    assert stop.value.code == 2


def test_every_signal_reaches_the_process_of_the_run_once():
    # It exits with the number of signals it got. What is an echo, the run decides.
    count = "n=0; trap 'n=$((n+1))' TERM; echo; for i in {1..15}; do sleep 0.1; done; exit $n"
    before = signal.getsignal(signal.SIGTERM)
    with signals_passed_on() as passed_on:
        child = subprocess.Popen(["bash", "-c", count], stdout=subprocess.PIPE, process_group=0)
        passed_on.to(child)
        assert child.stdout.readline() == b"\n"  # the trap is set
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        assert child.wait(timeout=30) == 2
        child.stdout.close()
    assert passed_on.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_comes_before_the_process_reaches_it_too():
    with signals_passed_on() as passed_on:
        os.kill(os.getpid(), signal.SIGTERM)
        child = subprocess.Popen(["sleep", "60"], process_group=0)
        passed_on.to(child)
        assert child.wait(timeout=30) == -signal.SIGTERM


def test_shipped_sweeps_expand_to_the_runs_they_say(root):
    found = {path.name: read(path) for path in (root / "configs" / "sweeps").glob("*.yaml")}
    assert len(expand(found["lr_clip.yaml"])) == 18
    assert found["optuna.yaml"].study.count == 20


# Studies


def _study(folder: Path, *lines: str):
    keys = "optim.lr: {log_uniform: [1e-5, 1e-3]}, method: {choice: [grpo, dr_grpo]}"
    return read(_file(folder, f"optuna: {{n_trials: 3, seed: 1, keys: {{{keys}}}}}", *lines))


def test_a_study_is_continued_and_counts_its_trials(tmp_path):
    sweep = _study(tmp_path)
    seen = []
    for _ in range(3):
        study = Study(sweep)  # opened anew, as by another process
        trial, settings = study.ask()
        assert 1e-5 <= settings["optim.lr"] <= 1e-3
        assert settings["method"] in ("grpo", "dr_grpo")
        study.tell(trial, [0.5, 0.7])
        seen.append(settings)
    assert Study(sweep).finished == 3
    assert Study(sweep).tried() == seen
    assert len({settings["optim.lr"] for settings in seen}) > 1


def test_a_trial_that_was_cut_off_is_asked_again_with_its_values_and_counts_once(tmp_path):
    sweep = _study(tmp_path)
    _, first = Study(sweep).ask()
    _, second = Study(sweep).ask()
    assert first == second
    study = Study(sweep)
    trial, third = study.ask()
    assert third == first
    assert study.finished == 0
    study.tell(trial, [0.5])
    assert study.finished == 1
    _, fourth = study.ask()
    assert fourth != first


def test_a_trial_with_a_failed_run_has_failed_and_counts(tmp_path):
    study = Study(_study(tmp_path))
    trial, _ = study.ask()
    study.tell(trial, [0.5, None])
    assert study.finished == 1


def test_a_study_of_the_other_direction_is_refused(tmp_path):
    Study(_study(tmp_path))
    with pytest.raises(ValueError, match=r"study.db holds a study that is to maximize"):
        Study(_study(tmp_path, "direction: minimize"))


def test_ends_of_a_study_are_checked_before_anything_runs(tmp_path, capsys):
    line = "optuna: {n_trials: 3, keys: {optim.beta1: {uniform: [0.5, 1.5]}}}"
    path = _file(tmp_path, line)
    assert cli.train_main(["--sweep", str(path)]) == 2
    assert "optim.beta1 (line 3): must be a number of at least 0" in capsys.readouterr().err
    assert cli.train_main(["--sweep", str(_study(tmp_path).path), "--index", "0"]) == 2
    assert "--index: has no meaning with optuna" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
