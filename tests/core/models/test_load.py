"""Models are found, read, written and refused; no torch needed."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jgrpo.models import hf
from jgrpo.models.architecture import Architecture, num_params
from jgrpo.models.decoder import build
from jgrpo.models.load import load

ARCH = Architecture(
    family="qwen2",
    vocab_size=56,
    d_model=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_width=4,
    ffn_width=24,
    qkv_bias=True,
    max_positions=64,
)


@pytest.fixture
def params():
    _, params = build(ARCH, dtype="float32", seed=0)
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    leaves = [
        jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, jax.tree.leaves(params), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


@pytest.fixture
def tiny(root, tmp_path):
    """The embedded model's files without weights."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(root / "jgrpo" / "assets" / "tiny" / name, tmp_path / name)
    return tmp_path


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 2000])
def test_written_weights_are_read_back_exactly(params, tmp_path, max_shard_bytes):
    hf.save(tmp_path, ARCH, params, dtype="float32", max_shard_bytes=max_shard_bytes)
    assert hf.load_architecture(tmp_path) == ARCH
    assert_equal(hf.load_params(tmp_path, ARCH, "float32"), params)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors*"))
    if max_shard_bytes > 10**6:
        assert files == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 4 * num_params(ARCH)
        assert set(index["weight_map"].values()) == set(files) - {"model.safetensors.index.json"}
        assert len(files) > 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_read_with_their_rounding_alone(params, tmp_path, dtype):
    hf.save(tmp_path, ARCH, params, dtype=dtype)
    read = hf.load_params(tmp_path, ARCH, "float32")
    assert_equal(read, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params))
    assert read["embed"].dtype == np.float32
    assert hf.load_params(tmp_path, ARCH, "bfloat16")["embed"].dtype == jnp.bfloat16


def test_linear_layers_are_written_as_output_by_input(params, tmp_path):
    """In transformers, y = x @ weight.T, with head h in rows h * E to (h + 1) * E."""
    hf.save(tmp_path, ARCH, params, dtype="float32")
    written = load_file(tmp_path / "model.safetensors")
    q = written["model.layers.1.self_attn.q_proj.weight"]
    o = written["model.layers.1.self_attn.o_proj.weight"]
    layers = params["layers"]
    assert q.shape == (16, 16)
    np.testing.assert_array_equal(q[4 * 2 + 3], layers["q"][1, :, 2, 3])
    np.testing.assert_array_equal(o[:, 4 * 2 + 3], layers["o"][1, 2, 3])
    np.testing.assert_array_equal(
        written["model.layers.1.self_attn.k_proj.bias"][4 + 1], layers["k_bias"][1, 1, 1]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("remove", "missing: model.layers.2.mlp.up_proj.weight"),
        ("add", "unexpected: model.layers.0.self_attn.q_norm.weight"),
        ("reshape", r"model.norm.weight has shape \[15\], but config.json implies \[16\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(params, tmp_path, change, words):
    hf.save(tmp_path, ARCH, params, dtype="float32")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    if change == "remove":
        del tensors["model.layers.2.mlp.up_proj.weight"]
    elif change == "add":
        tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(4, np.float32)
    else:
        tensors["model.norm.weight"] = np.ones(15, np.float32)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=words):
        hf.load_params(tmp_path, ARCH, "float32")


def test_a_tied_head_that_the_file_repeats_is_ignored(tmp_path):
    arch = dataclasses.replace(ARCH, tied_embeddings=True)
    _, params = build(arch, dtype="float32", seed=0)
    hf.save(tmp_path, arch, params, dtype="float32")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, path)
    assert_equal(hf.load_params(tmp_path, arch, "float32"), params)


def test_a_shard_that_is_absent_is_named(params, tmp_path):
    hf.save(tmp_path, ARCH, params, dtype="float32", max_shard_bytes=20_000)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name):
        hf.load_params(tmp_path, ARCH, "float32")


def test_saving_over_other_weights_is_refused(params, tmp_path):
    hf.save(tmp_path, ARCH, params, dtype="float32")
    with pytest.raises(ValueError, match="already holds weights"):
        hf.save(tmp_path, ARCH, params, dtype="float32")


def test_random_start_takes_architecture_and_tokenizer_from_the_path(tiny):
    one = load(str(tiny), init="random", seed=1, param_dtype="bfloat16")
    same = load(str(tiny), init="random", seed=1, param_dtype="bfloat16")
    other = load(str(tiny), init="random", seed=2, param_dtype="bfloat16")
    assert_equal(one.params, same.params)
    assert not (one.params["embed"] == other.params["embed"]).all()
    assert one.params["embed"].dtype == jnp.bfloat16
    assert (one.arch.family, one.arch.num_layers) == ("qwen3", 4)


def test_a_saved_model_loads_with_its_tokenizer(tiny, tmp_path_factory):
    start = load(str(tiny), init="random")
    target = tmp_path_factory.mktemp("export")
    hf.save(
        target,
        start.arch,
        start.params,
        dtype="float32",
        tokenizer=start.tokenizer,
        generation={"eos_token_id": [2, 1]},
    )
    model = load(str(target))
    assert_equal(model.params, start.params)
    assert model.graphdef == start.graphdef
    assert model.tokenizer("12+7=").input_ids == start.tokenizer("12+7=").input_ids
    assert json.loads((target / "config.json").read_text())["eos_token_id"] == 1


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, (1,)), ({"eos_token_id": 2}, (1, 2)), ({"eos_token_id": [4, 2]}, (1, 2, 4))],
)
def test_end_tokens_of_both_sources_count(tiny, generation, expected):
    if generation is not None:
        (tiny / "generation_config.json").write_text(json.dumps(generation))
    model = load(str(tiny), init="random")
    assert (model.eos_ids, model.pad_id) == (expected, 0)


def test_a_model_without_pad_token_pads_with_its_end_token(tiny):
    path = tiny / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    assert load(str(tiny), init="random").pad_id == 1


def test_a_tokenizer_larger_than_the_model_is_refused(tiny):
    path = tiny / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 48}))
    with pytest.raises(ValueError, match="the tokenizer has 56 tokens, the model only 48"):
        load(str(tiny), init="random")


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "nowhere.gguf", "a/b/c"])
def test_a_path_that_is_not_there_says_what_was_looked_for(path):
    with pytest.raises(ValueError, match=r"no such directory or \.gguf file"):
        load(path)


def test_an_id_that_the_hub_does_not_provide_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'nobody/nothing'.*hub did not provide it"):
        load("nobody/nothing")


@pytest.mark.parametrize(
    ("missing", "words"),
    [("config.json", "no config.json"), ("tokenizer_config.json", "no tokenizer")],
)
def test_a_directory_without_a_part_names_it(tiny, missing, words):
    (tiny / missing).unlink()
    with pytest.raises(ValueError, match=words):
        load(str(tiny))


def test_a_directory_without_weights_says_what_was_looked_for(tiny):
    with pytest.raises(ValueError, match=r"looked for model.safetensors"):
        load(str(tiny))
