import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jgrpo.metrics import (
    METRICS,
    MetricsFile,
    Sample,
    SamplesWriter,
    metric,
    metrics_page,
    plain_metrics,
)


def _rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


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
        "num_tokens",
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


def test_line_has_step_first_then_sorted_names(tmp_path: Path):
    file = MetricsFile(tmp_path)
    file.write(0, {"reward/mean": 0.25, "kl/ref": np.float32(0.1), "optim/updates": 3})
    file.close()
    expected = '{"step": 0, "kl/ref": 0.1, "optim/updates": 3, "reward/mean": 0.25}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == expected


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_number_is_null(tmp_path: Path, value: float):
    file = MetricsFile(tmp_path)
    file.write(0, {"loss/total": value})
    file.close()
    assert _rows(tmp_path) == [{"step": 0, "loss/total": None}]


@pytest.mark.parametrize("value", [np.zeros(2), np.zeros((1, 1)), np.True_, np.array("1")])
def test_value_that_is_not_one_number_is_refused(value: np.ndarray):
    with pytest.raises(ValueError, match="'reward/mean' must be one number"):
        plain_metrics({"reward/mean": value})


def test_step_must_rise(tmp_path: Path):
    file = MetricsFile(tmp_path)
    file.write(3, {})
    with pytest.raises(ValueError, match="step 3 comes after step 3"):
        file.write(3, {})
    file.close()


@pytest.mark.parametrize("torn", [b"", b'{"step": 5, "rew', b"\xff\x00"])
@pytest.mark.parametrize("finished_steps", range(7))
def test_resumed_file_equals_one_never_interrupted(
    tmp_path: Path, torn: bytes, finished_steps: int
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run_dir, steps in ((whole, 7), (cut, 5)):
        run_dir.mkdir()
        file = MetricsFile(run_dir)
        for step in range(steps):
            file.write(step, {"reward/mean": step / 3})
        file.close()
    path = cut / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    start = min(finished_steps, 5)
    file = MetricsFile(cut)
    file.truncate_after(start)
    for step in range(start, 7):
        file.write(step, {"reward/mean": step / 3})
    file.close()
    assert path.read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [entry.name for entry in cut.iterdir()] == ["metrics.jsonl"]


def test_truncating_without_a_file_makes_none(tmp_path: Path):
    MetricsFile(tmp_path).truncate_after(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [b"{}", b"[1]", b"text", b'{"step": "1"}', b"\xff"])
def test_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}:2: expected"):
        MetricsFile(tmp_path).truncate_after(3)


def _sample(**changes: object) -> Sample:
    facts = {
        "step": 12,
        "prompt_index": 96,
        "group_index": 1,
        "prompt_ids": np.array([5, 6], np.int32),
        "completion_ids": np.array([7, 2], np.int32),
        "prompt": "1+1=",
        "completion": "2 ✓",
        "logp": np.array([-0.1, -1e-6], np.float32),
        "rewards": {"exact": 1.0, "judge": None},
        "reward": 1.0,
        "advantage": float("nan"),
        "finished": True,
    }
    return Sample(**(facts | changes))


def test_samples_hold_ids_text_logp_and_rewards(tmp_path: Path):
    path = SamplesWriter(tmp_path).write(12, [_sample(), _sample(group_index=2)])
    assert path == tmp_path / "samples" / "step_000012.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["group_index"] for row in rows] == [1, 2]
    assert rows[0] == {
        "step": 12,
        "prompt_index": 96,
        "group_index": 1,
        "prompt_ids": [5, 6],
        "completion_ids": [7, 2],
        "prompt": "1+1=",
        "completion": "2 ✓",
        "logp": [-0.1, -1e-06],
        "rewards": {"exact": 1.0, "judge": None},
        "reward": 1.0,
        "advantage": None,
        "finished": True,
    }


def test_line_breaks_in_text_do_not_split_a_sample(tmp_path: Path):
    path = SamplesWriter(tmp_path).write(0, [_sample(completion="a\nb\r\n\u2028c")])
    assert path.read_bytes().count(b"\n") == 1
    assert json.loads(path.read_bytes())["completion"] == "a\nb\r\n\u2028c"


def test_page_lists_every_metric():
    page = metrics_page()
    for name, row in METRICS.items():
        assert f"| `{name}` | {row.unit} | {row.meaning}" in page
    assert page.count("\n## ") == len({name.split("/")[0] for name in METRICS})
