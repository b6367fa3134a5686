"""WS-GRPO in two runs: a preference model from outcomes alone, then rewards of steps by it."""

import json

import numpy as np
import pytest
from quickstart_runs import ROUNDING, leaves, metrics, run, samples
from safetensors.numpy import load_file

from jgrpo import config_io
from jgrpo.preferring import FILE

SAME = ["rollout.segment_mark=;", "rollout.max_completion_tokens=48", "eval.num_prompts=8"]
FIRST = [*SAME, "method=ws_preference", "optim.lr=1e-3"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Phase I in one go, and its summary."""
    folder = tmp_path_factory.mktemp("preference")
    return folder, run(folder, *FIRST, "run.steps=4")


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_two_phases(first, tmp_path):
    whole, summary = first
    run(tmp_path / "begun", *FIRST, "run.steps=1")
    table = metrics(whole)
    assert table[0]["preference/loss"] == pytest.approx(np.log(2))  # it prefers nothing yet
    assert all(row["preference/pairs"] > 0 for row in table)
    for when in ("before", "after"):
        told = summary[f"preference_{when}"]
        assert told["pairs"] > 0
        assert 0 <= told["calibration_error"] <= 1
    assert summary["preference_before"]["accuracy"] == 0.5
    # The policy stays where it was; the model does not.
    one, four = leaves(tmp_path / "begun", 1), leaves(whole, 4)
    for name, value in one.items():
        if name.startswith("params."):
            np.testing.assert_array_equal(value, four[name], err_msg=name)
    kept = load_file(whole / FILE)
    assert np.abs(kept["out_weight"]).max() > 0
    np.testing.assert_array_equal(kept["out_weight"], four["aux.preference.out_weight"])

    second = [*SAME, "method=ws_grpo", f"model.preference={whole}"]
    run(tmp_path / "second", *second, "run.steps=3")
    last = leaves(tmp_path / "second", 3)
    np.testing.assert_array_equal(last["aux.preference.out_weight"], kept["out_weight"])
    for row in metrics(tmp_path / "second"):
        assert row["preference/steps_mean"] >= 1
        assert 0 <= row["preference/helped_fraction"] <= 1
        assert row["grad/norm"] > 0
        assert row["invariant/logp_gap_max"] < ROUNDING
    rows = [json.loads(line) for text in samples(tmp_path / "second") for line in text.splitlines()]
    wrong = [row["advantage"] for row in rows if row["reward"] == 0]
    assert len({round(a, 5) for a in wrong}) > 3  # steps tell wrong completions apart


def test_completions_end_behind_a_step_that_is_doubted(first, tmp_path):
    """A cut completion: its own tokens up to a step's end, the phrase, an answer.

    With a threshold of 0 nothing is cut, and the run is that without the plan.
    """
    phrase = 'context.exit_phrase="#"'
    words = [*SAME, "method=ws_grpo", "method.step_low=1", f"model.preference={first[0]}"]
    stop = [*words, "method.plan=stop", phrase]
    run(tmp_path / "whole", *stop, "run.steps=3")
    rows = [json.loads(line) for text in samples(tmp_path / "whole") for line in text.splitlines()]
    cut = [row for row in rows if row["replaced"]]
    assert 0 < len(cut) < len(rows)
    for row in rows:
        assert (row["round"], row["injected"]) == ((2, 1) if row["replaced"] else (1, 0))
    for row in cut:
        before, mark, _ = row["completion"].partition(";#")  # tokens are characters
        assert mark
        assert row["logp"][len(before) + 1] == 0  # nobody drew the phrase
        assert row["logp"][0] < 0
    for step, row in enumerate(metrics(tmp_path / "whole")):
        share = np.mean([sample["replaced"] for sample in rows if sample["step"] == step])
        assert row["ws/stopped_fraction"] == pytest.approx(share)
        assert row["plan/replaced_fraction"] == pytest.approx(share)
        assert row["plan/drawn_tokens"] > row["tokens/completion"]
        assert row["grad/norm"] > 0
        for name in ("invariant/logp_gap_max", "invariant/ratio_gap_max"):
            assert row[name] < ROUNDING
    run(tmp_path / "never", *stop, "method.stop_below=0", "run.steps=1")
    run(tmp_path / "plain", *words, "run.steps=1")
    ((never,), (plain,)) = metrics(tmp_path / "never"), metrics(tmp_path / "plain")
    assert never.pop("ws/stopped_fraction") == 0
    never = {name: value for name, value in never.items() if not name.startswith("plan/")}
    assert never == pytest.approx(plain, rel=1e-4, abs=1e-5)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_reference_of_grpo_care_follows_the_policy(tmp_path):
    """Every second step ref = theta + .5 (ref - theta): after 2 steps half of the way."""
    words = [*SAME, "method=grpo_care", "method.ref_every_steps=2", "method.ref_decay=0.5"]
    run(tmp_path, *words, "run.steps=2", "checkpoint.every=1")
    first, second = leaves(tmp_path, 1), leaves(tmp_path, 2)
    names = [name for name in first if name.startswith("params.")]
    assert names
    for name in names:
        start = first["ref_" + name]
        np.testing.assert_allclose(
            second["ref_" + name], (second[name] + start) / 2, rtol=1e-5, atol=1e-7
        )
    assert any(np.any(second["ref_" + name] != first["ref_" + name]) for name in names)
    assert metrics(tmp_path)[1]["kl/ref"] > 0


def test_a_run_without_a_preference_model_is_refused(tmp_path):
    with pytest.raises(config_io.ConfigError, match=r"model.preference.*must name the run"):
        run(tmp_path, *SAME, "method=ws_grpo", "run.steps=1")
    with pytest.raises(config_io.ConfigError, match=r"model.preference.*must name the run"):
        run(tmp_path, *SAME, "method.plan=stop", "run.steps=1")
    with pytest.raises(ValueError, match=r"preference.safetensors does not exist"):
        run(tmp_path, *SAME, "method=ws_grpo", f"model.preference={tmp_path}", "run.steps=1")


def test_a_phrase_that_would_be_a_step_is_refused(tmp_path):
    words = [*SAME, "method=ws_grpo", f"model.preference={tmp_path}", "method.plan=stop"]
    with pytest.raises(config_io.ConfigError, match=r"exit_phrase.*must not have.*';' in it"):
        run(tmp_path, *words, 'context.exit_phrase=";#"', "run.steps=1")


def test_weight_decay_would_move_a_policy_that_is_not_trained(tmp_path):
    with pytest.raises(config_io.ConfigError, match=r"optim.weight_decay.*must be 0"):
        run(tmp_path, *FIRST, "optim.weight_decay=0.1", "run.steps=1")
