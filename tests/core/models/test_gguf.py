"""GGUF files written here with the gguf package's own writer are read back, or refused."""

import dataclasses

import gguf as gguf_package
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jgrpo.models import gguf, hf
from jgrpo.models.architecture import Architecture, RopeScaling
from jgrpo.models.decoder import build
from jgrpo.models.load import load

BASE = Architecture(
    family="llama",
    vocab_size=264,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    ffn_width=64,
    rope_theta=5000.0,
    norm_eps=1e-5,
    tied_embeddings=True,
    max_positions=128,
)
ARCHITECTURES = {
    "llama": BASE,
    "llama_untied": dataclasses.replace(
        BASE, tied_embeddings=False, rope_scaling=RopeScaling(kind="linear", factor=2.0)
    ),
    "qwen2": dataclasses.replace(BASE, family="qwen2", qkv_bias=True),
    "qwen3": dataclasses.replace(BASE, family="qwen3", qk_norm=True, head_width=16),
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def byte_characters():
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def write(path, arch, params, directory, *, pre="smollm", extra=None, quantised=False):
    """What llama.cpp's converter writes for a Hugging Face directory."""
    hf.save(directory, arch, params, dtype="float32")
    writer = gguf_package.GGUFWriter(path, arch.family)
    writer.add_context_length(arch.max_positions)
    writer.add_embedding_length(arch.d_model)
    writer.add_block_count(arch.num_layers)
    writer.add_feed_forward_length(arch.ffn_width)
    writer.add_head_count(arch.num_heads)
    writer.add_head_count_kv(arch.num_kv_heads)
    writer.add_key_length(arch.head_width)
    writer.add_layer_norm_rms_eps(arch.norm_eps)
    writer.add_rope_freq_base(arch.rope_theta)
    if arch.rope_scaling is not None:
        writer.add_rope_scaling_type(gguf_package.RopeScalingType(arch.rope_scaling.kind))
        writer.add_rope_scaling_factor(arch.rope_scaling.factor)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_characters().values()]
    tokens += ["ab", "abc", "Ġa", "12", "!!"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b", "ab c", "Ġ a", "1 2", "! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, value in load_file(directory / "model.safetensors").items():
        name, value = converted(arch, name, value)
        if quantised and value.ndim == 2:
            kind = gguf_package.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf_package.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted(arch, name, value):
    """Name and layout in a GGUF file: Llama's q and k rows are interleaved by llama.cpp."""
    stem, kind = name.rsplit(".", 1)
    if arch.family == "llama" and stem.endswith(("q_proj", "k_proj")):
        heads = arch.num_heads if stem.endswith("q_proj") else arch.num_kv_heads
        halves = value.reshape(heads, 2, arch.head_width // 2, -1)
        value = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{kind}", value
    return f"{NAMES[stem]}.{kind}", value


@pytest.fixture(params=list(ARCHITECTURES))
def arch(request):
    return ARCHITECTURES[request.param]


def random_params(arch):
    _, params = build(arch, dtype="float32", seed=0)
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        structure, [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    )


def test_architecture_and_weights_are_read_exactly(arch, tmp_path):
    params = random_params(arch)
    write(tmp_path / "m.gguf", arch, params, tmp_path / "hf")
    read_arch, read, _ = gguf.load(tmp_path / "m.gguf", "float32")
    assert read_arch == arch
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_quantised_weights_are_read_within_their_rounding(tmp_path):
    """Q8_0 keeps 127 levels for the largest of 32 numbers."""
    params = random_params(BASE)
    write(tmp_path / "m.gguf", BASE, params, tmp_path / "hf", quantised=True)
    _, read, _ = gguf.load(tmp_path / "m.gguf", "float32")
    for name in ("q", "o", "up"):
        found, expected = read["layers"][name], params["layers"][name]
        assert not (found == expected).all()
        np.testing.assert_allclose(found, expected, atol=np.abs(expected).max() / 250)


def test_a_file_loads_with_its_tokenizer(tmp_path):
    write(tmp_path / "m.gguf", BASE, random_params(BASE), tmp_path / "hf")
    model = load(str(tmp_path / "m.gguf"), param_dtype="bfloat16")
    assert (model.eos_ids, model.pad_id) == ((2,), 2)
    assert str(model.params["embed"].dtype) == "bfloat16"
    tokenizer = model.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("abc a12").input_ids) == [
        "abc",
        "Ġa",
        "1",
        "2",
    ]
    assert tokenizer("<|im_start|>ab<|im_end|>").input_ids == [1, 259, 2]
    text = "naïve  abc!! ..."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "<|im_start|>ab<|im_end|>"


@pytest.mark.parametrize("text", ["It's 123, naïve—e\u0301t", "  a\n\n b12!!\r\n x", "I'LL 3.14"])
def test_qwen2_words_are_cut_as_transformers_cuts_them(tmp_path, text):
    from transformers import Qwen2Tokenizer

    arch = ARCHITECTURES["qwen2"]
    write(tmp_path / "m.gguf", arch, random_params(arch), tmp_path / "hf", pre="qwen2")
    ours = gguf.load(tmp_path / "m.gguf", "float32")[2].backend_tokenizer
    theirs = Qwen2Tokenizer().backend_tokenizer
    normal = ours.normalizer.normalize_str(text)
    assert normal == theirs.normalizer.normalize_str(text)
    assert ours.pre_tokenizer.pre_tokenize_str(normal) == theirs.pre_tokenizer.pre_tokenize_str(
        normal
    )


def test_stored_rope_frequencies_are_refused(tmp_path):
    extra = {"rope_freqs.weight": np.ones(4, np.float32)}
    write(tmp_path / "m.gguf", BASE, random_params(BASE), tmp_path / "hf", extra=extra)
    with pytest.raises(ValueError, match="RoPE frequencies stored as a tensor"):
        gguf.load(tmp_path / "m.gguf", "float32")


def test_an_unknown_tensor_is_refused_by_name(tmp_path):
    extra = {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}
    write(tmp_path / "m.gguf", BASE, random_params(BASE), tmp_path / "hf", extra=extra)
    with pytest.raises(ValueError, match=r"unexpected: blk\.0\.attn_sinks\.weight"):
        gguf.load(tmp_path / "m.gguf", "float32")


def test_an_unknown_tokenizer_is_refused_by_name(tmp_path):
    write(tmp_path / "m.gguf", BASE, random_params(BASE), tmp_path / "hf", pre="llama-bpe")
    with pytest.raises(ValueError, match="pre-tokenizer 'llama-bpe' is not supported"):
        gguf.load(tmp_path / "m.gguf", "float32")


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    writer = gguf_package.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'mamba' is not supported"):
        gguf.load(tmp_path / "m.gguf", "float32")
