"""Runs whose plans ask again: what stands in samples and metrics, and that they resume exactly."""

import dataclasses
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from quickstart_runs import ROOT, ROUNDING, SMALL, metrics, run, samples

from jgrpo import algo, config_io
from jgrpo.algo.rounds import uniform

WORDS = [
    'context.hint="{prompt}{hint}"', 'context.draft="{draft}{prompt}"', 'context.step_mark=";"',
    'context.teacher="{draft}{prompt}"', 'context.feedback=";{feedback}%"',
    "method.feedback_share=0.4", "method.feedback_tokens=12",
    'context.criteria="{draft}^{criteria}%{prompt}"',
    'context.budget="{budget};{prompt}"', 'context.predict="?{prompt}"',
    "method.budget_every_steps=1",
    "method.budget_start_tokens=60",
    'context.answer="{answer}={prompt}"', 'context.exit_phrase="#"', "eval.num_prompts=4",
    "rollout.max_completion_tokens=56", "data.num_prompts_per_step=8", "rollout.group_size=3",
    "method.hint_after_steps=0", "method.hint_levels=2", "method.dynamic_max_rounds=2",
    "rollout.chunk_tokens=56", "optim.packing=false",  # few shapes: compiling is what takes time
]  # fmt: skip
RUBRIC = ["data.options.rubric=true", "reward.workers=1", "data.max_prompt_tokens=96"]
RUBRIC += ["reward.functions=[{name: judge_rubric, options: {judge: rules}}]"]
NAMES = ("guide_grpo", "scaf_grpo", "cgi", "expo", "igrpo", "s_grpo", "rgr_grpo")
NAMES += ("thinktuning", "train_long_think_short", "masa")
TWO = ["reward.functions=[{name: tagged_number}, {name: regex_format}]"]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for text in samples(folder) for line in text.splitlines()]


def groups(folder: Path) -> list[list[dict]]:
    found: dict[tuple[int, int], list[dict]] = {}
    for row in rows(folder):
        found.setdefault((row["step"], row["prompt_index"]), []).append(row)
    return list(found.values())


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("name", NAMES)
def test_three_steps_of_every_plan(tmp_path, name):
    # `dynamic` would leave out groups that no hint has solved.
    more = {"guide_grpo": ["method.sampler=uniform"], "rgr_grpo": RUBRIC}
    more |= {"train_long_think_short": TWO}
    every = more.get(name, [])
    run(tmp_path, f"method={name}", *WORDS, *every, "run.steps=3")
    check_metrics(tmp_path, drawn_once=name != "s_grpo")
    check = {"scaf_grpo": scaffolded, "cgi": injected, "guide_grpo": guided, "expo": explained}
    check |= {"igrpo": refined, "s_grpo": serial, "rgr_grpo": by_its_rubric}
    check |= {"thinktuning": commented, "train_long_think_short": told_a_budget}
    check |= {"masa": predicted}
    assert check[name](groups(tmp_path)), "the run has no case of what is to be seen"


def check_metrics(folder, drawn_once):
    for row in metrics(folder):
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["invariant/ratio_gap_max"] < ROUNDING
        assert np.isfinite(row["grad/norm"])
        assert row["optim/skipped_updates"] == 0
        # Exits share the tokens of their path.
        least = row["tokens/completion"] if drawn_once else row["completion/length_max"]
        assert row["plan/drawn_tokens"] >= least


def scaffolded(found):
    """One row, the first, under a hint that is in its prompt in training; the others are wrong."""
    helped = [group for group in found if group[0]["replaced"]]
    for group in helped:
        assert group[0]["reward"] > 0
        assert group[0]["level"] in (1, 2)
        assert group[0]["context"].startswith(group[0]["prompt"])
        assert len(group[0]["context"]) > len(group[0]["prompt"])
        assert all(row["reward"] <= 0 and not row["replaced"] for row in group[1:])
    assert all(len(group) == 3 for group in found)
    return helped


def injected(found):
    given = [group for group in found if group[-1]["injected"]]
    for group in given:
        assert group[-1]["injected"] == len(group[-1]["completion_ids"])
        assert group[-1]["reward"] > 0
        assert group[-1]["round"] == 2
        assert all(row["reward"] <= 0 for row in group[:-1])
        assert group[-1]["advantage"] == pytest.approx(2 / 3**0.5, abs=1e-4)  # (G - 1) / sqrt G
    return given


def guided(found):
    hinted = [group for group in found if group[0]["level"]]
    for group in hinted:
        assert all(row["context"] != row["prompt"] and row["replaced"] for row in group)
    return hinted


def explained(found):
    led = [group for group in found if len(group) == 4]
    for group in led:
        assert group[-1]["reward"] > 0
        assert 0 < group[-1]["advantage"] <= 0.05
        assert all(row["advantage"] == 0 for row in group[:-1])
    return led


def refined(found):
    assert all(row["round"] == 2 and row["context"] for group in found for row in group)
    return found


def by_its_rubric(found):
    """The last of the worst gives way to one that saw the best and what it fails."""
    again = [group for group in found if any(row["replaced"] for row in group)]
    for group in again:
        (new,) = [row for row in group if row["replaced"]]
        others = [row for row in group if not row["replaced"]]
        best = max(others, key=lambda row: row["reward"])
        assert best["reward"] < 1
        assert new["round"] == 2
        assert new["level"] == best["group_index"] + 1
        draft, listed = new["context"].split("^")
        assert draft == best["completion"]
        for line in listed.split("%")[0].split("\n"):
            kind, what = line.split(": ")
            assert kind in ("contains", "ends with")
            assert not (what in draft if kind == "contains" else draft.endswith(what))
    for group in found:
        assert group in again or max(row["reward"] for row in group) == 1
    return again


def commented(found):
    """One of three goes on behind a comment: its first tokens have log-probs, the comment none."""
    for first, *others in found:
        assert (first["round"], first["replaced"], first["level"]) == (3, True, 0)
        assert 1 < first["injected"] <= 12
        drawn = np.array(first["logp"]) < 0
        (at,) = np.nonzero(~drawn)
        comment = at[: first["injected"]]
        assert np.array_equal(comment, comment[0] + np.arange(first["injected"]))
        assert first["completion"][comment[0]] == ";"
        assert len(first["completion_ids"]) > comment[-1] + 1
        assert all((row["round"], row["injected"]) == (1, 0) for row in others)
    return found


def told_a_budget(found):
    """60 tokens, then 42, then 29.4: as the step's level, and in the prompt of every completion."""
    told = {0: 60, 1: 42, 2: 29}
    for row in (row for group in found for row in group):
        assert row["level"] == told[row["step"]]
        assert row["context"] == f"{row['level']};{row['prompt']}"
        assert (row["round"], row["replaced"]) == (1, False)
    assert {row["step"] for group in found for row in group} == {0, 1, 2}
    return found


def predicted(found):
    """Solutions are compared with solutions; predictions, which say nothing here, are worth 0."""
    for group in found:
        solutions, predictions = group[:3], group[3:]
        assert len(predictions) == 3
        assert all(row["context"] is None and row["level"] == 0 for row in solutions)
        assert all(row["context"] == f"?{row['prompt']}" for row in predictions)
        for row in predictions:
            assert (row["level"], row["reward"], row["advantage"]) == (1, 0, 0)
            assert row["rewards"]["tagged_number"] is None
            assert row["rewards"]["prediction_rate"] == 0
        rewards = np.array([row["reward"] for row in solutions])
        expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
        np.testing.assert_allclose([row["advantage"] for row in solutions], expected, atol=1e-4)
    return [group for group in found if group[0]["advantage"] != 0]


def serial(found):
    """The exits are parts of the path, by the path's own tokens and log-probs, and the phrase."""
    for group in found:
        *exits, path = group
        assert path["round"] == 1
        for row in exits:
            assert row["injected"] == 1
            cut = row["completion"].index("#") if "#" in row["completion"] else None
            assert cut is not None
            same = [
                a == b for a, b in zip(row["completion_ids"], path["completion_ids"], strict=False)
            ]
            k = same.index(False) if False in same else len(same)
            assert k >= 1
            assert row["logp"][:k][: cut or k] == path["logp"][: min(k, cut or k)]
    return found


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("name", ["guide_grpo", "s_grpo"])
@pytest.mark.slow
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, name):
    run(tmp_path / "whole", f"method={name}", *WORDS, "run.steps=3")
    run(tmp_path / "parts", f"method={name}", *WORDS, "run.steps=1")
    run(tmp_path / "parts", f"method={name}", *WORDS, "run.steps=3")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert samples(tmp_path / "parts") == samples(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout.lag=1"], r"rollout.lag.*must be 0 with plan 'scaffold'"),
        (["method.source=both"], r"method.source.*must be 'policy' with plan 'scaffold'"),
        (['context.hint="{prompt}"'], r"context.hint.*must contain \{hint\}"),
        (["method=rgr_grpo"], r"reward.functions.*must list judge_rubric with plan 'rubric_ref"),
        (
            ["reward.functions=[{name: exact_match, per: group}]"],
            r"per.*must be 'completion' with plan 'scaffold', which reads rewards between rounds",
        ),
    ],
)
def test_what_a_plan_cannot_be_combined_with_is_refused(words, message):
    with pytest.raises(config_io.ConfigError, match=message):
        config_io.load(
            ROOT / "configs" / "quickstart.yaml", [*SMALL, "method=scaf_grpo", *WORDS, *words]
        )


def test_a_plan_may_allow_fewer_tokens(tmp_path, monkeypatch):
    module = types.ModuleType("my_plans")

    def short(m, size, prompts):
        wants = lambda seen: [algo.Want(p, 0, size, limit=5 + p) for p in range(prompts)]  # noqa: E731
        return dataclasses.replace(uniform(size, wants), marks=True)

    monkeypatch.setattr(module, "short", short, raising=False)
    monkeypatch.setitem(sys.modules, "my_plans", module)
    run(tmp_path, *WORDS, "method.plan=my_plans:short", "run.steps=1")
    found = groups(tmp_path)
    for p, group in enumerate(found):
        assert all(len(row["completion_ids"]) <= 5 + p for row in group)
    assert any(len(row["completion_ids"]) == 5 + p for p, g in enumerate(found) for row in g)


def test_predictions_come_first_and_what_they_do_not_say_stops_nobody(tmp_path):
    run(tmp_path, "method=masa", "method.plan=predict_first", *WORDS, "run.steps=1")
    check_metrics(tmp_path, drawn_once=True)
    (row,) = metrics(tmp_path)
    assert row["plan/again_fraction"] == 1
    for group in groups(tmp_path):
        assert [sample["round"] for sample in group] == [2, 2, 2, 1, 1, 1]
    assert predicted(groups(tmp_path))
