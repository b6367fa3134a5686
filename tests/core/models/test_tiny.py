"""The embedded model's configuration and tokenizer, made by scripts/make_tiny_tokenizer.py."""

import json
import runpy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.models.architecture import from_hf, num_params
from jgrpo.models.load import load

CHARACTERS = "0123456789+-*/=();#?.,% abcdefghijklmnopqrstuvwxyz\n:^"


@pytest.fixture(scope="module")
def tokenizer():
    return load("tiny", init="random").tokenizer


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=CHARACTERS, max_size=40))
def test_every_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_spaces_before_punctuation_survive():
    tokenizer = load("tiny", init="random").tokenizer
    for text in ("gcd(12, 18) = ?", "a , b .", "  2  "):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_distinct_and_skippable(tokenizer):
    ids = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert ids == [0, 1, 2]
    three = tokenizer("3").input_ids
    assert tokenizer.decode([*three, 1, 0], skip_special_tokens=True) == "3"
    assert tokenizer.decode([*three, 1]) == "3<eos>"


def test_an_unknown_character_becomes_unk(tokenizer):
    assert tokenizer("1Q").input_ids == [*tokenizer("1").input_ids, 2]


def test_every_id_has_a_text(tokenizer):
    model = load("tiny", init="random")
    assert len(tokenizer) == model.arch.vocab_size == 56
    texts = [tokenizer.decode([index]) for index in range(56)]
    assert all(texts)
    assert len(set(texts)) == 56


def test_the_model_has_half_a_million_parameters(root):
    """By hand: 56*96 + 96 + 4 * (2*96 + 2*32 + 2*96*128 + 2*96*64 + 3*96*320)."""
    config = json.loads((root / "jgrpo" / "assets" / "tiny" / "config.json").read_text())
    arch = from_hf(config)
    print(f"tiny: {num_params(arch):,} parameters")
    assert num_params(arch) == 522_592


def test_the_script_makes_the_shipped_files(root, tmp_path):
    script = runpy.run_path(str(root / "scripts" / "make_tiny_tokenizer.py"))
    script["make_tokenizer"]().save_pretrained(str(tmp_path))
    shipped = root / "jgrpo" / "assets" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((shipped / name).read_text())
    arch = script["make_architecture"](56)
    assert from_hf(json.loads((shipped / "config.json").read_text())) == arch
