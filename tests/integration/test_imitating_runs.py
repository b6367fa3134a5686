"""Runs that imitate predictions: these wait in the state, and come back after a restart too."""

import json

import pytest
from quickstart_runs import ROUNDING, metrics, run, samples
from stateful_methods import settings

from jgrpo import config_io

PROMPTS = 8  # a step, in `MASA`


@pytest.fixture
def words(tmp_path):
    """Settings of a run in which the notion of every prompt is its tagged answer."""
    return settings("masa", tmp_path)


def test_a_batch_of_predictions_waits_and_is_imitated(words, tmp_path):
    run(tmp_path / "whole", *words, "run.steps=4")
    rows = [json.loads(line) for text in samples(tmp_path / "whole") for line in text.splitlines()]
    stored, batches = 0, 0
    for step, row in enumerate(metrics(tmp_path / "whole")):
        right = {
            r["prompt_index"]
            for r in rows
            if r["step"] == step and r["rewards"]["tagged_number"] == 1
        }
        trained = PROMPTS if stored >= PROMPTS else 0
        stored += len(right) - trained
        batches += trained > 0
        assert (row["expert/trained"], row["expert/stored"]) == (trained, stored)
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["optim/skipped_updates"] == 0
    assert batches
    run(tmp_path / "none", *words, "run.steps=4", "method.expert_coef=0")
    with_them, without = (metrics(tmp_path / name) for name in ("whole", "none"))
    first = [row["expert/trained"] > 0 for row in with_them].index(True)
    for step in range(first + 1):
        norms = with_them[step]["grad/norm"], without[step]["grad/norm"]
        assert (norms[0] == norms[1]) == (step < first)
    assert "expert/stored" not in without[0]


def test_what_predictions_lack_is_refused(words, tmp_path):
    with pytest.raises(config_io.ConfigError, match=r"method.expert_coef.*needs ref_logp"):
        run(tmp_path, *words, "run.steps=1", "method.penalty=k3", "method.kl_coef=0.1")
