import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jgrpo.metrics import METRICS, metric, metrics_page, plain_metrics


@pytest.mark.parametrize("name", METRICS)
def test_row_is_complete(name: str):
    row = METRICS[name]
    assert re.fullmatch(r"[a-z]+/[a-z@<>_/]+", name)
    assert row.unit
    assert row.meaning
    assert "|" not in row.meaning.replace("|ratio - 1|", "").replace("|sampler - learner|", "")


@pytest.mark.parametrize(
    "name", [name for name in METRICS if METRICS[name].unit in ("s", "tokens/s")]
)
def test_wall_clock_metric_says_so_in_its_name(name: str):
    assert name.endswith("_s")


def test_trl_names_are_those_its_trainer_logs():
    """Read off public trainer_state.json files that TRL's GRPOTrainer wrote."""
    known = {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/<function>/mean",
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "loss",
        "kl",
        "entropy",
        "clip_ratio/region_mean",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "grad_norm",
        "learning_rate",
        "step_time",
        "sampling/sampling_logp_difference/max",
    }
    assert {row.trl for row in METRICS.values() if row.trl} == known


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("reward/exact/mean", "reward/<function>/mean"),
        ("reward/my.module:score/mean", "reward/<function>/mean"),
        ("eval/pass@16", "eval/pass@<k>"),
        ("eval/pass@1_low", "eval/pass@<k>_low"),
        ("eval/maj@8_high", "eval/maj@<k>_high"),
        ("kl/ref", "kl/ref"),
    ],
)
def test_name_finds_its_row(name: str, row: str):
    assert metric(name) is METRICS[row]


@pytest.mark.parametrize(
    "name",
    ["reward", "reward/a/b/mean", "eval/pass@0", "eval/pass@<k>", "eval/pass@k", "rewardXmean"],
)
def test_unlisted_name_raises(name: str):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        metric(name)


def test_unlisted_name_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"did you mean 'reward/mean'\?"):
        plain_metrics({"reward/meen": 1.0})


def test_float32_in_any_container_gives_the_same_bytes():
    """1e-6 as float32 is 9.99999997475e-07 in float64; all must be written 1e-06."""
    value = np.float32(1e-6)
    kinds = [value, float(value), np.asarray(value), np.float64(value), jnp.asarray(value), 1e-6]
    written = {json.dumps(plain_metrics({"optim/lr": kind})) for kind in kinds}
    assert written == {'{"optim/lr": 1e-06}'}


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_written_float_reads_back_as_the_same_float32(value: float):
    text = json.dumps(plain_metrics({"reward/mean": value}))
    assert np.float32(json.loads(text)["reward/mean"]).tobytes() == np.float32(value).tobytes()


@pytest.mark.parametrize("value", [np.zeros(2), np.zeros((1, 1)), np.True_, np.array("1")])
def test_value_that_is_not_one_number_is_refused(value: np.ndarray):
    with pytest.raises(ValueError, match="'reward/mean' must be one number"):
        plain_metrics({"reward/mean": value})


def test_page_lists_every_metric():
    page = metrics_page()
    for name, row in METRICS.items():
        assert f"| `{name}` | {row.unit} | {row.meaning}" in page
    assert page.count("\n## ") == len({name.split("/")[0] for name in METRICS})
