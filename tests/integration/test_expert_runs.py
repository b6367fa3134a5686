"""A model of experts through the whole loop: sampled, trained with each routing, exported."""

import json
import shutil

import numpy as np
import pytest
from by_hand import by_hand
from quickstart_runs import ROOT, ROUNDING, metrics, run

from jgrpo.config_io import ConfigError

CONFIG = {
    "model_type": "qwen3_moe",
    "vocab_size": 56,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model's tokenizer with a small model of experts."""
    path = tmp_path_factory.mktemp("experts")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(ROOT / "jgrpo/assets/tiny" / name, path / name)
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def words(folder, *more):
    rewards = "reward.functions=[{name: 'rewards_of_tests:mixed'}]"
    return (f"model.path={folder}", "model.init=random", "run.steps=3", rewards, *more)


@pytest.mark.parametrize(
    "more",
    [
        by_hand(("method=gspo", "model.router_z_coef=1e-3")),
        by_hand(
            (
                "model.routing_replay=r2",
                "model.router_aux_coef=1e-2",
                "optim.minibatches=2",
                "data.num_prompts_per_step=16",
                "mesh.expert=2",
            )
        ),
        by_hand(("model.routing_replay=measure", "optim.minibatches=2", "optim.lr=1e-2")),
        ("method=gspo", "model.routing_replay=r3", "rollout.slots=16", "model.dtype=bfloat16"),
    ],
    ids=["gspo", "r2", "measure", "r3"],
)
def test_three_steps_of_a_model_of_experts(folder, tmp_path, more):
    run(tmp_path, *words(folder, *more))
    rows = metrics(tmp_path)
    assert len(rows) == 3
    for row in rows:
        assert row["optim/skipped_updates"] == 0
        assert row["grad/norm"] > 0
        assert np.isfinite(row["loss/total"])
        assert row["router/z"] > 0
        if "model.dtype=bfloat16" not in more:
            assert row["invariant/logp_gap_max"] < ROUNDING
        if any("routing_replay" in word for word in more):
            assert 0 <= row["router/differs"] < 0.5
        assert ("router/balance" in row) == any("aux_coef" in word for word in more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("model.path=tiny", "model.routing_replay=r3"), r"model\.routing_replay must be off"),
        (("model.path=tiny", "mesh.expert=2"), r"mesh\.expert must divide the 0 experts"),
        (("mesh.expert=3", "mesh.replica=1"), "does not make 8"),
        (
            ("mesh.expert=2", "mesh.fsdp=2", "optim.microbatch_completions=2"),
            r"microbatch_completions must be 0 or a multiple of a group's 4 completions",
        ),
    ],
)
def test_settings_that_the_model_cannot_have_are_refused(folder, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *words(folder, *more))
    assert not (tmp_path / "run").exists()


def test_replay_of_a_plan_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"method\.sampler.*with model\.routing_replay 'r3'"):
        run(tmp_path, *words(folder, "method=dapo", "model.routing_replay=r3"))
