"""benchmarks/reproduce.py: equal budgets, what is read off the runs, verdicts, and the data."""

import json
import math
import re
import time
from hashlib import sha256

import numpy as np
import pytest

from jgrpo.data import chain

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def reproduce(benchmark):
    return benchmark("reproduce")


@pytest.fixture(scope="module")
def claims(benchmark):
    return benchmark("claims")


@pytest.fixture(scope="module")
def verdicts(benchmark):
    return benchmark("verdicts")


@pytest.fixture(scope="module")
def lessons(benchmark):
    return benchmark("lessons")


def record(task, arm, seed, accuracy, tokens=100.0, **more):
    found = {"task": task, "arm": arm, "seed": seed, "accuracy": accuracy, "tokens": tokens}
    found |= {"curve": [[0.0, 0.2], [tokens, accuracy]], "accuracy_before": 0.2, "first": 0.03}
    found |= {"length": 40.0, "length_before": 80.0, "useful": 0.5, "equal": 0.5, "seconds": 7.0}
    return found | {"reward": 0.3, "rewards": {"tagged_number": accuracy}} | more


def test_every_arm_has_the_same_budget_and_rate(reproduce, claims, tmp_path):
    cells = {cell for claim in claims.CLAIMS.values() for cell in claim.runs}
    assert {arm for _, arm in cells} == set(claims.ARMS)
    for task, arm in sorted(cells):
        cfg = reproduce.load(tmp_path, reproduce.settings(task, arm, 3, False))
        rounds = 2 if arm == "igrpo" else 1  # as many drafts as completions that train
        assert cfg.data.num_prompts_per_step * cfg.rollout.group_size * rounds == 128
        assert (cfg.optim.minibatches, cfg.optim.epochs_per_step) == (2, 1)
        assert (cfg.run.steps, cfg.run.seed, cfg.optim.lr) == (30, 3, 3e-4)
        assert (cfg.method.penalty, cfg.method.kl_coef) == ("none", 0)
        assert not cfg.plan.roles or cfg.optim.role_lr == cfg.optim.lr


def test_every_claim_has_grpo_on_its_tasks_and_conditions_within_its_runs(claims):
    for claim in claims.CLAIMS.values():
        assert {(task, "grpo") for task, _ in claim.runs} <= set(claim.runs)
        for arm, rules in claim.rules.items():
            assert arm in {name for _, name in claim.runs}
            for rule in rules:
                assert set(rule.cells) <= set(claim.runs)
                assert math.isfinite(rule.least) != math.isfinite(rule.most)


def test_accuracy_is_read_where_an_arm_has_drawn_grpos_tokens(claims):
    """GRPO draws 150: half way between 100 and 200 stands .6; one that ends at 120 stays there."""
    greedy = record("hard", "scaf_grpo", 0, 0.8, curve=[[0, 0.2], [100, 0.4], [200, 0.8]])
    runs = {("hard", "grpo"): record("hard", "grpo", 0, 0.3, tokens=150.0)}
    runs |= {("hard", "scaf_grpo"): greedy, ("hard", "igrpo"): record("hard", "igrpo", 0, 0.7, 120)}
    assert claims.accuracy(runs, "hard", "scaf_grpo") == pytest.approx(0.6)
    assert claims.accuracy(runs, "hard", "igrpo") == 0.7
    assert claims.accuracy(runs, "hard", "grpo") == 0.3


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ([], "not run"),
        ([0.1], "yes, unclear"),
        ([0.10, 0.11, 0.12], "yes"),  # .11 with half a width of .025
        ([0.05, 0.10, 0.15], "yes, unclear"),  # .10 with .124
        ([0.00, 0.05, 0.05], "no, unclear"),  # .033 with .072
        ([-0.10, -0.11, -0.12], "no"),
    ],
)
def test_a_condition_is_met_by_the_mean_and_clear_beyond_its_interval(
    verdicts, claims, found, word
):
    condition = claims.Condition(text="", cells=(), value=lambda runs: 0.0, least=0.05)
    assert verdicts.judge(condition, found) == word


def test_a_claim_holds_if_all_conditions_are_met(verdicts):
    assert verdicts.verdict(["yes", "yes"]) == "holds"
    assert verdicts.verdict(["yes", "yes, unclear"]) == "holds, unclear"
    assert verdicts.verdict(["yes", "no, unclear"]) == "fails, unclear"
    assert verdicts.verdict(["no", "yes, unclear"]) == "fails"
    assert verdicts.verdict(["yes", "not run"]) == "not run"


def test_failures_and_runs_not_made_stay_in_the_page(verdicts, claims, tmp_path):
    """Of two seeds one failed, so one decides: 1 - 28 / 40 of the tokens saved, .01 lost."""
    runs = [record("wordy", "grpo", seed, 0.8) for seed in (0, 1)]
    runs += [record("wordy", "ws_grpo", 0, 0.79, 70.0, length=28.0)]
    runs += [{**runs[2], "seed": 1, "failure": "ValueError: a | b"}]
    text = verdicts.page(["ws_grpo", "shorter", "tempo"], runs)
    assert "| ws_grpo | holds, unclear | 1 |" in text
    assert "| tempo | not run | 0 |" in text
    assert "| at least 0.25 | 0.300 | yes, unclear |" in text
    assert "| at least -0.02 | -0.010 | yes, unclear |" in text
    assert "1 of 2 (seed 1: ValueError: a / b) |" in text
    assert "claim_ws_grpo.png" in text
    assert "claim_shorter.png" not in text  # of it only GRPO has run
    verdicts.plot(claims.CLAIMS["ws_grpo"], runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_what_is_measured_of_a_run(reproduce, tmp_path):
    """Two steps: tokens of rounds that were not trained count, and so do copied groups."""
    steps = [
        {"plan/drawn_tokens": 300, "eval/greedy_accuracy": 0.5, "refill/replaced_fraction": 0.25},
        {},
    ]
    same = {
        "tokens/completion": 100, "reward/zero_variance_fraction": 0.5, "optim/updates": 2,
        "completion/length_mean": 10.0, "reward/tagged_number/mean": 0.25,
        "optim/skipped_updates": 0,
    }  # fmt: skip
    lines = [json.dumps(same | step) + "\n" for step in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "environment.json").write_text('{"commit": "c", "jax": "j"}')
    before, after = ({"greedy_accuracy": a, "length_mean": 20.0} for a in (0.25, 0.75))
    found = reproduce.measured(tmp_path, {"eval_before": before, "eval_after": after})
    assert found["curve"] == [[0.0, 0.25], [300.0, 0.5], [400.0, 0.75]]
    assert (found["tokens"], found["updates"], found["equal"]) == (400.0, 4, 0.5)
    assert found["useful"] == 0.625
    assert found["rewards"] == {"tagged_number": 0.25}
    assert "failure" not in found


def test_the_hard_problems_are_those_that_carelessness_misses(lessons, tmp_path):
    """Every step carries, none of the solutions can be had without that, and help is help."""
    lessons.write_data(tmp_path)
    files = {path.stem: path.read_text() for path in tmp_path.glob("*.jsonl")}
    data = {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}
    assert {name: len(found) for name, found in data.items()} == {
        "lessons": 8192, "hard": 1024, "hard_heldout": 256, "mixed": 128, "mixed_heldout": 256,
        "hard_half": 256, "hard_hint": 256, "hard_steps": 256, "hard_draft": 256,
    }  # fmt: skip
    for name in ("hard", "mixed"):
        prompts = {row["prompt"] for row in data[name]}
        assert not prompts & {row["prompt"] for row in data[f"{name}_heldout"]}
    assert not {row["prompt"] for row in data["hard_heldout"]} & {
        row["prompt"] for row in data["lessons"] if "=" not in row["prompt"][:-2]
    }
    for row in [*data["hard"], *data["hard_heldout"]]:
        *steps, end = row["solution"].split(";")
        assert (len(steps), end) == (3, f"#{row['answer']}")
        for step in steps:
            first, sign, second = re.split(r"([+-])", step.partition("=")[0])
            assert chain.count_carries(int(first), 1 if sign == "+" else -1, int(second))
    first = {name: data[name][0] for name in data}
    bare, solution = (first["hard_heldout"][field] for field in ("prompt", "solution"))
    steps = [f"{step};" for step in solution.split(";")[:3]]
    assert first["hard_half"]["prompt"] == bare + solution[: len(solution) // 2]
    assert first["hard_hint"]["prompt"] == steps[0] + bare
    assert first["hard_steps"]["prompt"] == "".join(steps) + bare
    draft, _, rest = first["hard_draft"]["prompt"].rpartition(";")
    assert rest == bare
    assert not draft.endswith(f"#{first['hard_draft']['answer']}")
    for name in lessons.HELP:
        assert [row["answer"] for row in data[name]] == [r["answer"] for r in data["hard_heldout"]]


def test_lessons_are_careless_but_under_a_hint_and_a_hinter_writes_steps(lessons):
    rows = [json.loads(line) for line in lessons.texts()["lessons"].splitlines()]
    by_kind = {
        kind: [row for i, row in enumerate(rows) if lessons.KINDS[i % len(lessons.KINDS)] == kind]
        for kind in lessons.CAREFUL
    }
    assert {kind: len(found) / len(rows) for kind, found in by_kind.items()} == {
        "bare": 0.75, "hint": 0.125, "draft": 0.0625, "hinter": 0.0625,
    }  # fmt: skip
    right = lambda row: row["solution"].endswith(f"#{row['answer']}")  # noqa: E731
    shares = {kind: float(np.mean([*map(right, found)])) for kind, found in by_kind.items()}
    assert shares == pytest.approx({"bare": 0.0, "hint": 0.7, "draft": 0.3, "hinter": 0}, abs=0.06)
    assert [row["prompt"].count(";") for row in by_kind["hint"][:4]] == [1, 2, 3, 1]
    assert all(row["prompt"].count("#") == 1 for row in by_kind["draft"])
    for row in by_kind["hinter"][:50]:
        wrong, solution, prompt = row["prompt"].split("^")
        assert solution.startswith(row["solution"])
        assert row["solution"].count(";") in (1, 2)
        assert row["solution"].endswith(";")
        assert solution.endswith(f"#{row['answer']}")
        assert not wrong.endswith(f"#{row['answer']}")
        assert prompt.endswith("=?")


def test_other_data_are_refused_and_records_hold_a_digest_of_theirs(
    lessons, reproduce, tmp_path, monkeypatch
):
    lessons.write_data(tmp_path)
    written = (tmp_path / "hard.jsonl").stat().st_mtime_ns
    lessons.write_data(tmp_path)
    assert (tmp_path / "hard.jsonl").stat().st_mtime_ns == written
    facts = reproduce.known("hard", "grpo", 0, False)
    assert facts["data"].keys() == {"hard", "hard_heldout", "lessons"}
    assert facts["data"]["hard"] == sha256((tmp_path / "hard.jsonl").read_bytes()).hexdigest()[:16]
    assert reproduce.known("sums", "grpo", 0, False)["data"] == {}
    path = tmp_path / "hard_grpo_s0.json"
    path.write_text(json.dumps({**facts, "accuracy": 0.5}))
    assert reproduce.result(tmp_path, "hard", "grpo", 0, False)["accuracy"] == 0.5
    texts = lessons.texts() | {"lessons": "{}\n"}
    monkeypatch.setattr(lessons, "texts", lambda: texts)
    with pytest.raises(ValueError, match=r"hard_grpo_s0.json is of other settings \(data\)"):
        reproduce.result(tmp_path, "hard", "grpo", 0, False)
    with pytest.raises(ValueError, match=r"lessons.jsonl is of other lessons"):
        lessons.write_data(tmp_path)


def test_a_base_that_was_made_otherwise_is_refused(reproduce, tmp_path):
    exported = tmp_path / "bases" / "starved" / "exported"
    exported.mkdir(parents=True)
    made = {"settings": ["run.steps=7"], "data": {}}
    (exported.parent / "made.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match=r"made.json is of other settings \(settings, data\)"):
        reproduce.prepare(tmp_path, ["hard"], False)


def test_no_run_is_begun_that_would_not_end_in_time(reproduce, tmp_path):
    """The longest so far took 30 s. At the end of the budget nothing is begun at all."""
    for seed, seconds in enumerate((20.0, 30.0)):
        path = tmp_path / f"sums_grpo_s{seed}.json"
        path.write_text(
            json.dumps({**reproduce.known("sums", "grpo", seed, True), "seconds": seconds})
        )
    before = sorted(tmp_path.glob("*.json"))
    assert reproduce.longest(tmp_path) == 30.0
    runs = [("sums", "grpo", seed) for seed in range(3)]
    reproduce.work(tmp_path, runs, True, time.time() + 25)
    assert sorted(tmp_path.glob("*.json")) == before
    assert not (tmp_path / "runs").exists()
