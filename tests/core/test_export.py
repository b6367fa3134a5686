"""Exports without torch: what is in the directory, what is refused, and that none is ever half."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from run_folders import CHAT_TEMPLATE, make_run, weights
from safetensors import safe_open
from small_models import CONFIGS
from transformers import AutoTokenizer

from jgrpo import config_io
from jgrpo.cli import main
from jgrpo.config import RolloutConfig
from jgrpo.export import export, generation_config, parse_bytes
from jgrpo.files import sha256
from jgrpo.model_card import model_card
from jgrpo.models import hf
from jgrpo.models.load import load


@pytest.fixture(scope="module")
def source(root, tmp_path_factory):
    return make_run(root, tmp_path_factory.mktemp("export"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same_weights(folder, family, step, dtype="float32"):
    arch, expected = weights(family, step)
    found = hf.load_params(folder, arch, dtype)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), found, dict(expected)
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_the_weights_of_the_asked_step_are_written(root, tmp_path, family):
    source = make_run(root, tmp_path, family)
    for step in (1, 2):
        done = export(source, tmp_path / f"step{step}", step=step, max_shard_bytes=20_000)
        assert done.step == step
        assert_same_weights(done.directory, family, step)


def test_the_newest_checkpoint_is_the_default(source, tmp_path):
    assert export(source, tmp_path / "out").step == 2
    assert_same_weights(tmp_path / "out", "qwen3", 2)


def test_all_that_others_need_is_there_and_nothing_else(source, tmp_path):
    done = export(source, tmp_path / "deep" / "out")
    assert names(done.directory) == [
        *("README.md", "config.json", "generation_config.json", "jgrpo_config.yaml"),
        *("jgrpo_export.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    manifest = json.loads((done.directory / "jgrpo_export.json").read_text())
    assert (
        manifest["files"].keys()
        == done.files.keys()
        == {*names(done.directory)} - {"jgrpo_export.json"}
    )
    for name, facts in manifest["files"].items():
        assert facts == {
            "bytes": (done.directory / name).stat().st_size,
            "sha256": sha256(done.directory / name),
        }
    copied = config_io.load(done.directory / "jgrpo_config.yaml")
    assert copied == config_io.load(source / "config.yaml")
    assert names(done.directory.parent) == ["out"]


def test_shards_keep_to_the_size_and_the_index_names_every_tensor(source, tmp_path):
    said = []
    folder = export(source, tmp_path / "out", max_shard_bytes=20_000, say=said.append).directory
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 3
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    arch, _ = weights("qwen3", 2)
    assert index["weight_map"].keys() == hf.tensor_names(arch).keys()
    assert index["metadata"]["total_size"] == hf.num_bytes(arch, "float32")
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 20_000
        assert all(index["weight_map"][name] == shard.name for name in tensors)
        assert any(shard.name in line for line in said)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(source, tmp_path):
    folder = export(source, tmp_path / "out", max_shard_bytes=1).directory
    arch, _ = weights("qwen3", 2)
    assert len(list(folder.glob("*.safetensors"))) == len(hf.tensor_names(arch))
    assert_same_weights(folder, "qwen3", 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_precision_is_the_rounded_weights(source, tmp_path, dtype):
    folder = export(source, tmp_path / "out", dtype=dtype).directory
    arch, expected = weights("qwen3", 2)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    found = hf.load_params(folder, arch, "float32")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(kind).astype(np.float32)),
        found,
        dict(expected),
    )
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype


def test_weights_that_the_precision_cannot_hold_are_named(tmp_path):
    arch, params = weights("qwen3", 1)
    params["layers"]["up"][1, 0, 0] = 1e5
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj.*1e\+05 is more than float16"):
        hf.save(tmp_path / "half", arch, params, dtype="float16")
    hf.save(tmp_path / "brain", arch, params, dtype="bfloat16")
    params["layers"]["up"][1, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj.*not finite"):
        hf.save(tmp_path / "full", arch, params, dtype="float32")


def test_the_tokenizer_and_its_chat_template_survive(root, tmp_path):
    source = make_run(root, tmp_path, chat_template=CHAT_TEMPLATE, overrides=["data.chat=always"])
    folder = export(source, tmp_path / "out").directory
    before, after = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "base", folder))
    text = "61+72=133;#133"
    assert after(text).input_ids == before(text).input_ids
    assert after.decode(after(text).input_ids) == text
    messages = [{"role": "user", "content": "7+5"}]
    asked = {"add_generation_prompt": True, "tokenize": False}
    assert after.apply_chat_template(messages, **asked) == "u:7+5\na:"
    card = (folder / "README.md").read_text()
    assert "apply_chat_template" in card


def test_the_export_opens_as_a_model_of_ours(source, tmp_path):
    folder = export(source, tmp_path / "out").directory
    start, again = load("tiny", init="random"), load(str(folder))
    assert (again.eos_ids, again.pad_id) == (start.eos_ids, start.pad_id)


def test_sampling_is_written_as_it_was_in_training():
    model = load("tiny", init="random")
    assert generation_config(RolloutConfig(temperature=0.7, top_p=0.9, top_k=5), model) == {
        **{"eos_token_id": 1, "pad_token_id": 0, "do_sample": True},
        **{"temperature": 0.7, "top_p": 0.9, "top_k": 5},
    }
    open_ended = generation_config(RolloutConfig(min_p=0.1), model)
    assert (open_ended["top_k"], open_ended["min_p"]) == (56, 0.1)
    greedy = generation_config(RolloutConfig(temperature=0.0), model)
    assert greedy == {"eos_token_id": 1, "pad_token_id": 0, "do_sample": False}


def test_several_end_tokens_are_all_written(root, tmp_path):
    source = make_run(root, tmp_path)
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    folder = export(source, tmp_path / "out").directory
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1, 7]


def card_of(source, to, **options):
    text = (export(source, to, **options).directory / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_says_what_was_done_and_what_came_of_it(root, tmp_path):
    source = make_run(
        root, tmp_path, overrides=["method=gspo", "method.clip_high=0.01", "rollout.group_size=6"]
    )
    front, body = card_of(source, tmp_path / "my-model", dtype="bfloat16")
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["jgrpo", "reinforcement-learning", "gspo", "task:chain"],
    }
    for text in (
        *("# my-model", "`gspo` with ", "clip_high=0.01", "arXiv:2507.18071", "`tagged_number`"),
        *("2 of 60; 32 prompts a step, 6 completions a prompt", "lr=0.0003", "carries=some"),
        *("written as bfloat16", "8: ", "jax=", 'from_pretrained("./my-model")'),
        *("vllm serve ./my-model", "sglang.launch_server --model-path ./my-model"),
        "| greedy_accuracy | 0.250 (0.300 to 0.700) | 0.875 (0.300 to 0.700) |",
    ):
        assert text in body, text
    assert "$" not in body


def test_the_card_does_not_claim_an_evaluation_of_other_weights(source, tmp_path):
    _, body = card_of(source, tmp_path / "one", step=1)
    assert "These weights were not evaluated" in body
    assert "| before training | step 2 |" in body
    _, body = card_of(source, tmp_path / "two", step=2)
    assert "| before training | step 2 (this model) |" in body


def test_the_card_shows_the_evaluation_made_at_the_exported_step(root, tmp_path):
    source = make_run(root, tmp_path)
    row = {"step": 0, "eval/greedy_accuracy": 0.5, "eval/length_mean": 3.0}
    (source / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    _, body = card_of(source, tmp_path / "out", step=1)
    assert "| before training | step 1 (this model) | step 2 |" in body
    assert "| 0.250 (0.300 to 0.700) | 0.500 | 0.875" in body


def test_hub_names_become_links_of_the_card(root, tmp_path):
    source = make_run(root, tmp_path)
    cfg = config_io.load(
        source / "config.yaml", ["data.task=gsm8k", "data.options={}", "data.path=x.jsonl"]
    )
    hub = config_io.load(source / "config.yaml", ["model.path=Qwen/Qwen3-0.6B"])
    model = load("tiny", init="random")
    for config, key, value in (
        (cfg, "datasets", ["openai/gsm8k"]),
        (hub, "base_model", "Qwen/Qwen3-0.6B"),
    ):
        text = model_card(source, config, model, name="out", step=2, dtype="float32")
        assert yaml.safe_load(text.split("---\n")[1])[key] == value


def test_an_earlier_export_is_replaced_whole(source, tmp_path):
    export(source, tmp_path / "out", max_shard_bytes=20_000)
    export(source, tmp_path / "out", step=1)
    assert names(tmp_path) == ["out"]
    assert len(list((tmp_path / "out").glob("*.safetensors*"))) == 1
    assert_same_weights(tmp_path / "out", "qwen3", 1)


def test_files_of_others_are_not_replaced_without_force(source, tmp_path):
    theirs = tmp_path / "out" / "thesis.tex"
    theirs.parent.mkdir()
    theirs.write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.tex.*no export of jgrpo.*--force"):
        export(source, theirs.parent)
    assert theirs.read_text() == "years of work"
    export(source, theirs.parent, force=True)
    assert not theirs.exists()
    theirs.write_text("notes on this model")
    with pytest.raises(ValueError, match=r"export to which thesis\.tex was added"):
        export(source, theirs.parent)
    assert names(tmp_path) == ["out"]


def test_places_that_must_not_be_replaced_are_refused_even_by_force(source, tmp_path, monkeypatch):
    for to, reason in (
        (source, "the run folder"),
        (source.parent, "the run folder"),
        (source / "checkpoints" / "2" / "out", "among the checkpoints"),
    ):
        with pytest.raises(ValueError, match=reason):
            export(source, to, force=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the current folder"):
        export(source, tmp_path, force=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    with pytest.raises(ValueError, match="the home folder"):
        export(source, tmp_path / "home", force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        export(source, tmp_path / "file")


def test_what_is_not_there_is_named(root, source, tmp_path):
    with pytest.raises(ValueError, match=r"not a run folder: it has no config\.yaml"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="no checkpoint of step 7; there are: 1, 2"):
        export(source, tmp_path / "out", step=7)
    with pytest.raises(ValueError, match="dtype: must be one of float32, bfloat16, float16"):
        export(source, tmp_path / "out", dtype="int8")
    empty = make_run(root, tmp_path)
    shutil.rmtree(empty / "checkpoints")
    with pytest.raises(ValueError, match="no finished checkpoint"):
        export(empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damage(source, step):
    folder = source / "checkpoints" / str(step)
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_never_exported(root, tmp_path):
    source = make_run(root, tmp_path)
    damage(source, 2)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        export(source, tmp_path / "out", step=2)
    said = []
    assert export(source, tmp_path / "out", say=said.append).step == 1
    assert any("step 2 is not used" in line and "SHA-256 differs" in line for line in said)
    assert_same_weights(tmp_path / "out", "qwen3", 1)
    damage(source, 1)
    with pytest.raises(ValueError, match="no good checkpoint"):
        export(source, tmp_path / "out")


def test_a_checkpoint_of_another_model_is_refused(root, tmp_path):
    source = make_run(root, tmp_path)
    shutil.rmtree(tmp_path / "base")
    make_run(root, tmp_path / "other", "qwen2")
    shutil.copytree(tmp_path / "other" / "base", tmp_path / "base")
    with pytest.raises(ValueError, match=r"params\.layers\.k_bias has shape None in the"):
        export(source, tmp_path / "out")


def test_a_write_that_fails_leaves_the_earlier_export_and_nothing_of_the_new(source, tmp_path):
    export(source, tmp_path / "out", step=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a file beyond it: EFBIG
    try:
        with pytest.raises(OSError, match="out was not written: File too large"):
            export(source, tmp_path / "out", step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["out"]
    assert_same_weights(tmp_path / "out", "qwen3", 1)


def test_too_little_space_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"the weights take 0\.1 MB, and 0\.0 MB are free"):
        export(source, tmp_path / "out")
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(source):
    """Nobody can make a folder there, root included."""
    with pytest.raises(OSError, match="/proc/out was not written: "):
        export(source, Path("/proc/out"))


def test_a_killed_export_leaves_no_half_and_the_next_one_clears_up(source, tmp_path):
    program = f"""
        import os, signal
        from pathlib import Path
        from jgrpo.export import export

        def say(line):
            if "model-00003" in line:
                os.kill(os.getpid(), signal.SIGKILL)

        source, to = Path({str(source)!r}), Path({str(tmp_path / "out")!r})
        export(source, to, max_shard_bytes=20_000, say=say)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["out.partial"]
    assert not (tmp_path / "out.partial" / "config.json").exists()
    export(source, tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_folder_of_others_in_the_way_is_named(source, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "data").write_text("x")
    with pytest.raises(ValueError, match=r"out\.partial is needed .*remove it"):
        export(source, tmp_path / "out", force=True)


def test_the_optimizer_is_not_read(root, tmp_path, monkeypatch):
    """A run whose optimizer state would not fit in memory exports all the same."""
    source = make_run(root, tmp_path)
    read = []
    restore = ocp.Checkpointer.restore

    def watched(self, *args, **kwargs):
        loaded = restore(self, *args, **kwargs)
        read.extend(loaded)
        return loaded

    monkeypatch.setattr(ocp.Checkpointer, "restore", watched)
    export(source, tmp_path / "out")
    assert read
    assert all(name.startswith("params.") for name in read)


@pytest.mark.parametrize("text", ["", "GB", "2 gigs", "-1GB", "0", "0.1B", "1e9", "2GB3"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="must be a size such as 2GB"):
        parse_bytes(text)


def test_the_command_writes_and_says_what_it_does(source, tmp_path, capsys):
    words = ["export", str(source), "--to", str(tmp_path / "out"), "--step", "1"]
    assert main([*words, "--dtype", "bfloat16", "--max-shard-size", "20KB"]) == 0
    said = capsys.readouterr().out
    assert "writing model-00001-of-0000" in said
    assert f"wrote step 1 to {tmp_path / 'out'}" in said
    assert main([*words, "--max-shard-size", "2 gigs"]) == 2
    assert "--max-shard-size: must be a size such as 2GB" in capsys.readouterr().err
    (tmp_path / "out" / "mine").write_text("")
    assert main(words) == 2
    assert main([*words, "--force"]) == 0


def test_an_export_leaves_the_run_folder_as_it_was(source, tmp_path):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    export(source, tmp_path / "out")
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
