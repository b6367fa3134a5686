"""Runs that train adapters: what is saved, resumed, refused and taken away."""

import json
import shutil

import jax
import numpy as np
import pytest
from by_hand import by_hand
from quickstart_runs import ROOT, ROUNDING, SMALL, leaves, metrics, run

from jgrpo import config_io
from jgrpo.cli import train_main
from jgrpo.config_io import ConfigError
from jgrpo.export import export
from jgrpo.models import decoder, hf, lora
from jgrpo.models.load import load
from jgrpo.reopen import reopen

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
LORA = ("model.lora.rank=4", "model.lora.alpha=16", "optim.lr=3e-3")
KL = ("method.penalty=k3", "method.kl_coef=0.05")
FEW = ("eval.num_prompts=4", "optim.packing=false")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four steps in one go, with a reference policy."""
    folder = tmp_path_factory.mktemp("lora") / "whole"
    run(folder, *LORA, *KL, "run.steps=4", "checkpoint.every=2")
    return folder


def logits(graphdef, params, tokens):
    hidden, _ = decoder.prefill(graphdef, params, tokens, np.ones(tokens.shape, bool))
    return np.asarray(decoder.logits(params, hidden))


def tokens():
    return np.random.default_rng(0).integers(3, 56, (2, 12)).astype(np.int32)


def trained_model(folder):
    """Structure of a run's model, and base and adapters of its newest checkpoint together."""
    opened, params, _, _ = reopen(folder)
    return opened.model.graphdef, lora.joined(opened.learner.frozen, params)


def test_only_adapters_are_trained_and_saved(whole):
    saved = leaves(whole, 4)
    assert "params.layers.down.b" in saved
    parts = [name.split(".") for name in saved if name.startswith("params.")]
    assert {tuple(part[:2]) for part in parts} == {("params", "layers")}
    assert {part[3] for part in parts} == {"a", "b"}
    assert not any(name.startswith("ref_params") for name in saved)
    assert all(np.any(leaf) for name, leaf in saved.items() if name.startswith("params."))
    numbers = sum(np.size(leaf) for leaf in saved.values())
    assert numbers == 3 * sum(np.size(v) for k, v in saved.items() if k.startswith("params.")) + 4
    assert numbers < load("tiny").params["layers"]["up"].size


def test_a_step_begins_at_the_base_and_samples_with_what_is_learned(whole):
    rows = metrics(whole)
    assert abs(rows[0]["kl/ref"]) < 1e-6
    assert rows[3]["kl/ref"] > 1e-4
    for row in rows:
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["grad/norm"] > 0
        assert row["optim/skipped_updates"] == 0


def test_a_run_in_two_parts_is_the_run_in_one(whole, tmp_path):
    settings = (*LORA, *KL, "checkpoint.every=2")
    run(tmp_path / "parts", *settings, "run.steps=2")
    run(tmp_path / "parts", *settings, "run.steps=4")
    assert metrics(tmp_path / "parts") == metrics(whole)
    found, expected = leaves(tmp_path / "parts", 4), leaves(whole, 4)
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


@pytest.mark.parametrize("bits", [by_hand("int8"), "nf4"])
def test_quantised_runs_sample_with_the_matrices_that_they_train_beside(tmp_path, bits):
    run(tmp_path / "run", *LORA, *FEW, f"model.lora.quantize={bits}", "run.steps=2")
    for row in metrics(tmp_path / "run"):
        assert row["invariant/logp_gap_max"] < ROUNDING
        assert row["optim/skipped_updates"] == 0
    merged = export(tmp_path / "run", tmp_path / "merged").directory
    graphdef, both = trained_model(tmp_path / "run")
    found = logits(graphdef, load(str(merged)).params, tokens())
    np.testing.assert_allclose(found, logits(graphdef, both, tokens()), atol=1e-4)


@pytest.mark.slow
def test_the_command_line_trains_adapters(tmp_path):
    words = [*SMALL, *FEW, f"run.dir={tmp_path / 'run'}", "run.steps=1", "model.lora.rank=8"]
    assert train_main([QUICKSTART, *words]) == 0
    assert leaves(tmp_path / "run", 1)["params.layers.q.a"].shape[-1] == 8


def test_the_plan_says_what_is_trained(capsys):
    assert train_main([QUICKSTART, "--check", "model.lora.rank=8"]) == 0
    said = capsys.readouterr().out
    assert "trained" in said
    assert "frozen" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.lora.quantize=int8"], "model.lora.quantize: must be 'none' without adapters"),
        (["model.lora.alpha=3"], "model.lora.alpha: must be 32.0 without adapters"),
        (["model.lora.rank=-1"], "model.lora.rank: must be a whole number"),
        (["model.lora.rank=4", "model.lora.quantize=int3"], "model.lora.quantize: must be one of"),
        (["model.lora.rank=4", "model.lora.targets=("], "model.lora.targets: must be a regular"),
        (["model.lora.rank=4", "method=ppo_clip", "rollout.group_size=1"], "which needs values"),
        (["model.lora.rank=4", "method=ws_preference"], "model.lora.rank: must be 0 for method"),
    ],
)
def test_what_adapters_cannot_is_refused_by_key(words, said):
    with pytest.raises(ConfigError) as refused:
        config_io.load(QUICKSTART, words)
    assert said in str(refused.value)


def test_targets_without_a_match_are_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"model\.lora\.targets: 'q_proj' matches no whole name"):
        run(tmp_path / "run", "model.lora.rank=4", "model.lora.targets=q_proj", "run.steps=1")


def test_other_weights_beside_the_adapters_are_refused(tmp_path):
    base, folder = tmp_path / "base", tmp_path / "run"
    shutil.copytree(ROOT / "jgrpo" / "assets" / "tiny", base)
    settings = (*LORA, *FEW, f"model.path={base}")
    run(folder, *settings, "run.steps=1")
    model = load(str(base))
    changed = {**model.params, "final_norm": model.params["final_norm"] * np.float32(1.01)}
    for file in base.glob("model*.safetensors*"):
        file.unlink()
    hf.save(base, model.arch, changed, dtype="float32")
    with pytest.raises(ValueError, match=r"model\.safetensors has changed"):
        run(folder, *settings, "run.steps=2")
    for use in (lambda: export(folder, tmp_path / "out"), lambda: reopen(folder)):
        with pytest.raises(ValueError, match=r"other weights than those of model\.path"):
            use()


def test_the_embedded_weights_are_known_too(whole):
    inputs = json.loads((whole / "inputs.json").read_text())
    assert "tiny: model.safetensors" in inputs


def test_a_merged_export_is_the_trained_model(whole, tmp_path):
    folder = export(whole, tmp_path / "out").directory
    graphdef, both = trained_model(whole)
    found, expected = load(str(folder)).params, logits(graphdef, both, tokens())
    assert np.abs(expected - logits(graphdef, load("tiny").params, tokens())).max() > 0.1
    np.testing.assert_allclose(
        logits(graphdef, found, tokens()), expected, atol=1e-5 * np.abs(expected).max()
    )
    assert "rank=4" in (folder / "README.md").read_text()


def test_a_run_without_adapters_has_none_to_export(tmp_path):
    run(tmp_path / "run", *FEW, "run.steps=1")
    with pytest.raises(ValueError, match=r"model\.lora\.rank 0\): it has no adapter"):
        export(tmp_path / "run", tmp_path / "out", adapter=True)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [".*(q|k|v|o|gate|up|down)_proj", by_hand(".*(q|down)_proj")])
def test_peft_puts_the_adapter_on_and_gives_our_logits(tmp_path, targets):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(tmp_path / "run", *LORA, *FEW, f"model.lora.targets={targets}", "run.steps=2")
    folder = export(tmp_path / "run", tmp_path / "adapter", adapter=True).directory
    assert {path.name for path in folder.iterdir()} >= {"README.md", "adapter_config.json"}
    assert not (folder / "config.json").exists()
    asked = json.loads((folder / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(asked["base_model_name_or_path"])
    assert len(AutoTokenizer.from_pretrained(folder)) == len(load("tiny").tokenizer)
    graphdef, both = trained_model(tmp_path / "run")
    ours = logits(graphdef, both, tokens())
    with torch.no_grad():
        plain = base(torch.tensor(tokens())).logits.numpy()
        model = peft.PeftModel.from_pretrained(base, folder).eval()
        theirs = model(torch.tensor(tokens())).logits.numpy()
    assert np.abs(plain - ours).max() > 0.01
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    status = model.get_model_status()
    assert status.num_adapter_layers == len(asked["target_modules"]) * base.config.num_hidden_layers
    numbers = [p.numel() for name, p in model.named_parameters() if "lora_" in name]
    assert sum(numbers) == sum(x.size for x in jax.tree.leaves(reopen(tmp_path / "run")[1]))
