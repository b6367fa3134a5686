"""An adapter adds a low-rank product, and few bits stand for nearly the same matrix."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_models import MATRICES, RANK, SCALE, adapters, frozen
from small_models import CONFIGS, model, prompts

from jgrpo.models import decoder, lora, stack
from jgrpo.models.architecture import INPUT_DIMS
from jgrpo.models.int8 import Int8, quantize_params
from jgrpo.models.layers import dense
from jgrpo.models.peft import targets


def logits(params, family="llama"):
    _, graphdef, _ = model(family)
    asked = prompts(4)
    hidden, _ = decoder.prefill(graphdef, params, asked.tokens, asked.mask)
    return np.asarray(decoder.logits(params, hidden))[np.asarray(asked.mask)]


def test_product_by_hand():
    """The base makes 1 + 2 x 3 = 7; x A = 1 - 2 = -1, times B = 4, times the scale .5 makes -2."""
    x = jnp.array([[1.0, 2.0]])
    weight = lora.LowRank(
        base=jnp.array([[1.0], [3.0]]),
        a=jnp.array([[1.0], [-1.0]]),
        b=jnp.array([[4.0]]),
        scale=0.5,
    )
    np.testing.assert_allclose(dense(x, weight), [[5.0]])
    np.testing.assert_allclose(dense(x, lora.LowRank(base=weight.base, scale=0.5)), [[7.0]])


def test_fresh_adapters_are_those_of_peft():
    """A uniform within 1 / sqrt(inputs), as Kaiming's with a = sqrt(5) is; B zero."""
    arch, _, _ = model("llama")
    fresh = lora.fresh_adapters(arch, MATRICES, 64, jax.random.key(0), "float32")["layers"]
    for name, inputs in {"q": 32, "o": 4 * 8, "down": 64}.items():
        drawn = np.abs(np.asarray(fresh[name]["a"]))
        assert 0.98 * inputs**-0.5 < drawn.max() <= inputs**-0.5
        assert drawn.mean() == pytest.approx(0.5 * inputs**-0.5, rel=0.05)
        assert not np.any(fresh[name]["b"])
    assert fresh["o"]["a"].shape == (2, 4, 8, 64)
    assert fresh["q"]["b"].shape == (2, 64, 4, 8)


def test_without_adapters_or_with_fresh_ones_the_model_is_what_it_was():
    arch, _, params = model("llama")
    before, base = logits(params), frozen()
    np.testing.assert_array_equal(logits(lora.joined(base, None)), before)
    fresh = lora.fresh_adapters(arch, MATRICES, RANK, jax.random.key(0), "float32")
    np.testing.assert_array_equal(logits(lora.joined(base, fresh)), before)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("matrices", [MATRICES, ("q", "v")])
def test_merged_weights_give_the_same_logits(family, matrices):
    both = lora.joined(frozen(family, "none", matrices), adapters(family, matrices))
    found, plain = logits(both, family), lora.merged(both)
    assert np.abs(found - logits(model(family)[2], family)).max() > 0.1
    np.testing.assert_allclose(found, logits(plain, family), atol=1e-5 * np.abs(found).max())
    for name, weight in plain["layers"].items():
        before = model(family)[2]["layers"][name]
        assert weight.shape == before.shape
        assert np.array_equal(weight, before) == (name not in matrices)


def test_layers_apart_take_their_adapters_along():
    apart = [stack.unstacked(tree) for tree in (frozen(), adapters())]
    together = logits(lora.joined(frozen(), adapters()))
    np.testing.assert_allclose(logits(lora.joined(*apart)), together, atol=1e-5)


def test_int8_is_off_by_at_most_a_255th_of_the_largest_of_its_output():
    _, _, params = model("llama")
    for name, inputs in INPUT_DIMS.items():
        weight = np.asarray(params["layers"][name])
        found = frozen(bits="int8", matrices=())["layers"][name]
        shared = tuple(range(1, 1 + inputs))
        largest = np.abs(weight).max(axis=shared, keepdims=True)
        assert found.array.qvalue.dtype == jnp.int8
        assert (np.abs(found.floats() - weight) <= largest / 255 * 1.001).all()


def test_nf4_is_off_by_at_most_half_its_widest_gap():
    """The widest gap, from -1 to -.6962, is .3038 of the largest of a block."""
    _, _, params = model("llama")
    weight = np.asarray(params["layers"]["down"])  # 64 inputs: one block
    found = frozen(bits="nf4", matrices=())["layers"]["down"]
    largest = np.abs(weight).max(axis=1, keepdims=True)
    assert found.array.qvalue.dtype == jnp.uint4
    assert found.array.scale.shape == (2, 1, 32)
    gap = np.abs(found.floats() - weight) / largest
    assert gap.max() <= 0.1520
    assert 0.02 < gap.mean() < 0.06


def test_a_block_of_nf4_has_at_most_64_inputs():
    layers = {name: jnp.ones((1, 2, 4)) for name in INPUT_DIMS}
    layers |= {"q": jnp.ones((1, 192, 2, 4)), "o": jnp.ones((1, 2, 128, 8))}
    found = lora.frozen({"layers": layers}, (), scale=1.0, bits="nf4")["layers"]
    assert found["q"].array.scale.shape == (1, 3, 2, 4)
    assert found["o"].array.scale.shape == (1, 2, 2, 8)


@pytest.mark.parametrize("bits", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_model_computes_with_the_matrices_that_the_bits_stand_for(family, bits):
    both = lora.joined(frozen(family, bits), adapters(family))
    found = logits(both, family)
    np.testing.assert_allclose(found, logits(lora.merged(both), family), atol=1e-4)
    exact = logits(lora.joined(frozen(family), adapters(family)), family)
    assert 1e-3 < np.abs(found - exact).mean() < {"int8": 0.05, "nf4": 1.0}[bits]


def test_the_sampler_rounds_the_frozen_matrices_and_leaves_adapters_alone():
    both = lora.joined(frozen(), adapters())
    rounded = quantize_params(both)
    assert isinstance(rounded["layers"]["q"].base, Int8)
    np.testing.assert_array_equal(rounded["layers"]["q"].a, adapters()["layers"]["q"]["a"])
    again = quantize_params(lora.joined(frozen(bits="nf4"), adapters()))
    assert isinstance(again["layers"]["q"].base, Int8)
    np.testing.assert_allclose(logits(rounded), logits(both), atol=0.3)


def test_without_qwix_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'jgrpo[lora]'")):
        lora.frozen(model("llama")[2], (), scale=SCALE, bits="int8")
    lora.frozen(model("llama")[2], MATRICES, scale=SCALE)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (".*(q|k|v|o|gate|up|down)_proj", MATRICES),
        (r"model\.layers\.\d+\.self_attn\.[qv]_proj", ("q", "v")),
        (".*", MATRICES),
    ],
)
def test_targets_match_whole_names(pattern, expected):
    assert targets(model("llama")[0], pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("q_proj", "model.lora.targets: 'q_proj' matches no whole name such as model.layers.0."),
        (r".*layers\.1\..*q_proj", "matches q_proj in the layers 1 only"),
        ("lm_head", "there are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
    ],
)
def test_targets_that_fit_no_stack_of_layers_are_refused(pattern, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        targets(model("llama")[0], pattern)
