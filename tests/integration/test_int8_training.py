"""A run that samples in 8-bit integers trains on the learner's log-probs, and corrects for it."""

import json

import numpy as np
import pytest

from jgrpo import config_io
from jgrpo.config_io import ConfigError
from jgrpo.run import train

SMALL = (
    "data.num_prompts_per_step=8",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=32",
    "eval.num_prompts=16",
    "run.steps=3",
)
INT8 = ("rollout.weights=int8", "rollout.kv=int8")


def test_three_steps_in_int8_are_finite_and_corrected(root, tmp_path):
    settings = [*SMALL, *INT8, "method.correction=is_token", f"run.dir={tmp_path}"]
    train(config_io.load(root / "configs" / "quickstart.yaml", settings))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert np.isfinite([row["loss/total"], row["grad/norm"]]).all()
        assert row["optim/skipped_updates"] == 0
        assert row["invariant/ratio_gap_max"] < 1e-3  # the ratio is the learner's own
        assert 1e-8 < row["kl/behavior"] < 1e-2
        assert 1e-4 < row["invariant/logp_gap_max"] < 1.0
        assert 0 < abs(row["correction/factor_mean"] - 1.0) < 0.05
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["attention"] == "xla"


@pytest.mark.parametrize("key", ["rollout.weights", "rollout.kv"])
def test_int8_without_a_correction_is_refused(root, key):
    with pytest.raises(ConfigError, match=r"method\.correction") as refused:
        config_io.load(root / "configs" / "quickstart.yaml", [f"{key}=int8"])
    for words in (
        key,
        "is_token, is_mask, is_sequence",
        "got 'none'",
        "method.correction=is_token",
    ):
        assert words in str(refused.value)
