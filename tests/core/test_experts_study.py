"""benchmarks/experts.py: the model that it begins with, equal budgets, and its table."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def experts(benchmark):
    return benchmark("experts")


def feed_forward(gate, up, down, x):
    inner = gate @ x
    return down @ (inner / (1 + np.exp(-inner)) * (up @ x))


def test_the_mean_over_one_copy_of_each_slice_is_the_feed_forward_that_was_cut(experts, tmp_path):
    experts.upcycled(tmp_path)
    dense, mixed = (load_file(p / "model.safetensors") for p in (experts.TINY, tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_experts"] == experts.SLICES * experts.COPIES
    x = np.random.default_rng(1).normal(size=config["hidden_size"])
    names = ("gate_proj", "up_proj", "down_proj")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp"
        whole = feed_forward(*(dense[f"{prefix}.{name}.weight"] for name in names), x)
        for copy in range(experts.COPIES):
            parts = [
                feed_forward(*(mixed[f"{prefix}.experts.{e}.{name}.weight"] for name in names), x)
                for e in range(copy * experts.SLICES, (copy + 1) * experts.SLICES)
            ]
            np.testing.assert_allclose(np.mean(parts, axis=0), whole, rtol=1e-4, atol=1e-4)
        assert mixed[f"{prefix}.gate.weight"].shape == (config["num_experts"], len(x))
    assert {name for name in dense if ".mlp." not in name} <= mixed.keys()


def test_every_arm_has_the_same_completions_updates_and_rate(experts, tmp_path):
    for method in experts.METHODS:
        for replay in experts.REPLAYS:
            cfg = experts.load(tmp_path, experts.settings("1e-3", method, replay, 3, 5))
            assert cfg.data.num_prompts_per_step * cfg.rollout.group_size == 128
            assert cfg.optim.minibatches * cfg.optim.epochs_per_step == experts.UPDATES
            assert (cfg.run.seed, cfg.run.steps, cfg.optim.lr) == (3, 5, 1e-3)
            assert (cfg.method.penalty, cfg.model.routing_replay) == ("none", replay)


def test_the_table_has_means_of_the_runs_that_did_not_fail(experts, tmp_path):
    steps = {name: [0.25, 0.75] for name in experts.SHOWN}
    arm = {"method": "gspo", "replay": "r2", "rate": "1e-3"}
    records = [
        arm | {"seed": 0, "accuracy": 0.5, "accuracy_before": 0.2, "steps": steps},
        arm | {"seed": 1, "accuracy": 0.7, "accuracy_before": 0.2, "steps": steps},
        arm | {"seed": 2, "failure": "FloatingPointError: it diverged"},
    ]
    (line,) = experts.table(records).splitlines()[2:]
    assert line.startswith("| 1e-3 | gspo | r2 | 0.600 ± 1.271 | 0.500 ± 0.000 |")
    assert line.endswith("| 1 of 3 (seed 2: FloatingPointError: it diverged) |")
    experts.plot(records, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
