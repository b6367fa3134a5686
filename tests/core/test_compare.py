"""benchmarks/compare.py: equal budgets, intervals, counted failures, and no run made twice."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from jgrpo import config_io
from jgrpo.algo import METHODS, needs
from jgrpo.config_methods import SUPPLIED

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PUBLISHED = (
    *("grpo", "dr_grpo", "dapo", "cispo", "gspo", "gmpo", "sapo"),
    *("bnpo", "mc_grpo", "ngrpo", "spo", "disco", "ppo_clip"),
)


@pytest.fixture(scope="module")
def compare(benchmark):
    return benchmark("compare")


@pytest.fixture(scope="module")
def records(benchmark):
    return benchmark("records")


def record(seed, accuracy, method="grpo", **more):
    found = {"method": method, "group": 4, "seed": seed, "accuracy": accuracy, "reward": 0.5}
    return found | {"reward_all": 0.25, "length": 30.0, "clipped": 0.25} | more


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("group", [4, 8])
def test_every_method_gets_the_same_completions_and_updates(compare, name, group):
    assert needs(METHODS[name]) <= SUPPLIED
    cfg = config_io.load(compare.CONFIG, compare.overrides(name, group, 3, 5))
    assert cfg.data.num_prompts_per_step * cfg.group_drawn == 128
    assert cfg.optim.minibatches * cfg.optim.epochs_per_step == 4
    assert cfg.method.sampler == "uniform" or cfg.method.dynamic_max_rounds == 1
    assert "ref_logp" not in needs(cfg.method)
    assert (cfg.run.seed, cfg.run.steps, cfg.optim.lr) == (3, 5, 3e-4)


def test_interval_is_students(records):
    """Of 1, 2, 3: mean 2, deviation 1, error 1 / sqrt 3, quantile 4.302653 at 2 degrees."""
    mean, half = records.interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose([mean, half], [2.0, 4.302653 / math.sqrt(3)], rtol=1e-6)
    assert math.isnan(records.interval([1.0])[1])


def test_table_counts_failures_and_leaves_them_out_of_the_means(compare):
    runs = [record(0, 0.8), record(1, 0.6), record(2, 0.1, failure="ValueError: a | b\nmore")]
    row = compare.table(runs).splitlines()[-1]
    assert row.startswith(
        "| grpo | 4 | 0.700 ± 1.271 | 0.500 ± 0.000 | 0.250 ± 0.000 | 30.0 | 0.2500 | 1 of 3 "
    )
    assert "(seed 2: ValueError: a / b) |" in row
    only = compare.table([record(0, 0.0, failure="x")]).splitlines()[-1]
    assert only == "| grpo | 4 | - | - | - | - | - | 1 of 1 (seed 0: x) |"


def test_a_run_that_raises_is_recorded_once_and_other_settings_are_refused(compare, tmp_path):
    """Supervised learning has one solution a prompt, so a group of 8 is refused when it starts."""
    found = compare.result(tmp_path, "sft", 8, 0, 2)
    assert "must be 1 for source 'reference'" in found["failure"]
    path = tmp_path / "sft_g8_s0.json"
    assert json.loads(path.read_text()) == found
    before = path.stat().st_mtime_ns
    assert compare.result(tmp_path, "sft", 8, 0, 2) == found
    assert path.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings"):
        compare.result(tmp_path, "sft", 8, 0, 3)


def test_completions_that_do_not_divide_are_refused_and_the_plot_is_drawn(compare, tmp_path):
    with pytest.raises(ValueError, match="not 4 parts of 5s"):
        compare.overrides("grpo", 5, 0, 2)
    failed = record(0, 0.0, method="gspo", failure="x")
    compare.plot([record(0, 0.8), record(1, 0.6), failed], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_run_is_taken_by_one_process(records, tmp_path):
    with (
        records.taken(tmp_path, "grpo_g4_s0") as first,
        records.taken(tmp_path, "grpo_g4_s0") as second,
        records.taken(tmp_path, "grpo_g4_s1") as other,
    ):
        assert (first, second, other) == (True, False, True)
    with records.taken(tmp_path, "grpo_g4_s0") as again:
        assert again


def test_a_worker_that_a_signal_ends_begins_again_and_one_that_fails_is_an_error(records, tmp_path):
    """The first worker to come kills itself; with its successor, two end well."""
    script = (
        "import os, pathlib, signal, sys\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "assert os.environ['NPROC'] == '1'\n"
        "try:\n"
        "    (folder / 'crashed').touch(exist_ok=False)\n"
        "except FileExistsError:\n"
        "    (folder / str(os.getpid())).touch()\n"
        "else:\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    records.make_with([sys.executable, "-c", script], 2, 2)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(RuntimeError, match="ended with 3"):
        records.make_with([sys.executable, "-c", "raise SystemExit(3)"], 2, 2)


def test_a_run_that_kills_its_process_is_recorded_as_a_failure_and_the_rest_goes_on(
    records, tmp_path
):
    """One run is killed whenever it is begun, one is stopped once by SIGTERM, one is well."""
    script = (
        f"import os, pathlib, signal, sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import records; records.TRIES = 1\n"
        "from jgrpo.stopping import Stopped\n"
        f"out = pathlib.Path({str(tmp_path)!r})\n"
        "def make(folder):\n"
        "    folder.mkdir(parents=True, exist_ok=True)\n"
        "    (folder / str(os.getpid())).touch()\n"
        "    if folder.name == 'killed':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if folder.name == 'stopped' and len(list(folder.iterdir())) == 1:\n"
        "        raise Stopped('SIGTERM', 'stopped')\n"
        "    return {'accuracy': 0.5}\n"
        "for stem in ('killed', 'stopped', 'well'):\n"
        "    with records.taken(out, stem) as free:\n"
        "        if free:\n"
        "            records.recorded(out, stem, {'seed': 0}, make)\n"
    )
    records.make_with([sys.executable, "-c", script], 1, 3)
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == {"killed", "stopped", "well"}
    assert found["killed"]["failure"] == "RuntimeError: 1 processes died at it"
    assert found["stopped"]["accuracy"] == found["well"]["accuracy"] == 0.5
    tries = {name: len(list((tmp_path / "runs" / name).iterdir())) for name in found}
    assert tries == {"killed": 1, "stopped": 2, "well": 1}
    assert not list((tmp_path / "begun").iterdir())
