"""config.json is read in both spellings, written back, and refused where it is not modelled."""

import dataclasses

import pytest

from jgrpo.models.architecture import (
    Architecture,
    RopeScaling,
    from_hf,
    logical_axes,
    num_params,
    to_hf,
)

LLAMA = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_smollm2_config_is_read():
    arch = from_hf(LLAMA)
    assert arch == Architecture(
        family="llama",
        vocab_size=49152,
        d_model=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_width=64,
        ffn_width=1536,
        rope_theta=100000.0,
        norm_eps=1e-5,
        tied_embeddings=True,
        max_positions=8192,
    )


def test_smollm2_has_135_million_parameters():
    """By hand: 49152*576 + 576 + 30 * (2*576 + 2*576*576 + 2*576*192 + 3*576*1536)."""
    assert num_params(from_hf(LLAMA)) == 134_515_008


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    ],
    ids=["rope_scaling", "rope_parameters"],
)
def test_both_spellings_of_rope_are_read(rope):
    arch = from_hf({**LLAMA, **rope})
    assert arch.rope_theta == 500000.0
    assert arch.rope_scaling == RopeScaling(kind="llama3", factor=32.0)


def test_linear_scaling_in_its_oldest_spelling_is_read():
    arch = from_hf({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert arch.rope_scaling == RopeScaling(kind="linear", factor=2.0)


def test_families_imply_their_switches():
    qwen2 = from_hf({**LLAMA, "model_type": "qwen2"})
    qwen3 = from_hf({**LLAMA, "model_type": "qwen3"})
    assert (qwen2.qkv_bias, qwen2.qk_norm, qwen2.head_width) == (True, False, 64)
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_width) == (False, True, 128)
    assert {"q_bias", "k_bias", "v_bias"} <= logical_axes(qwen2)["layers"].keys()
    assert {"q_norm", "k_norm"} <= logical_axes(qwen3)["layers"].keys()


def test_missing_kv_heads_means_one_per_query_head():
    assert from_hf({**LLAMA, "num_key_value_heads": None}).num_kv_heads == 9


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        RopeScaling(kind="linear", factor=2.0),
        RopeScaling(kind="llama3", factor=8.0, low_freq_factor=2.0, original_max_positions=4096),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_what_is_written_is_read_back_the_same(family, scaling):
    arch = dataclasses.replace(from_hf({**LLAMA, "model_type": family}), rope_scaling=scaling)
    assert from_hf(to_hf(arch)) == arch


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types\[1\]='sliding"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"hidden_size": None}, "missing hidden_size"),
        ({"num_key_value_heads": 4}, "num_heads=9 must be a multiple of num_kv_heads=4"),
        ({"head_dim": 7}, "head_width=7 must be even"),
    ],
)
def test_what_is_not_modelled_is_refused_by_key_and_value(change, words):
    with pytest.raises(ValueError, match=words):
        from_hf({**LLAMA, **change})


def test_an_unused_sliding_window_is_accepted():
    from_hf({**LLAMA, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096})
