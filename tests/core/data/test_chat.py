"""Prompts to tokens: what is encoded in which mode, and left padding."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from jgrpo.config import DataConfig
from jgrpo.data.chat import prompt_batch, tokenize
from jgrpo.types import Example

SIGNS = [*"0123456789+=?", "<bos>", "<eos>", "S", "U", "A", ":"]
TEMPLATE = (
    "<bos>{% for m in messages %}{{ m.role[0] | upper }}:{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def _tokenizer(adds_bos=False, template: str | None = TEMPLATE):
    core = Tokenizer(models.WordLevel({sign: i for i, sign in enumerate(SIGNS)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if adds_bos:
        core.post_processor = TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 13), ("<eos>", 14)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", chat_template=template
    )


def _words(ids):
    return "".join(SIGNS[i] for i in ids)


USER = [{"role": "user", "content": "1+1=?"}]
SYSTEM = [{"role": "system", "content": "0"}]


def test_plain_text_is_encoded_as_it_stands():
    assert _words(tokenize(_tokenizer(), "1+1=?")) == "1+1=?"


def test_bos_is_added_where_the_tokenizer_adds_it_and_eos_never():
    assert _words(tokenize(_tokenizer(adds_bos=True), "1+1=?")) == "<bos>1+1=?"
    assert _words(tokenize(_tokenizer(adds_bos=True), USER)) == "<bos>U:1+1=?A:"


@pytest.mark.parametrize(
    ("prompt", "chat", "system", "words"),
    [
        (USER, "auto", "", "<bos>U:1+1=?A:"),
        ("1+1=?", "always", "", "<bos>U:1+1=?A:"),
        ("1+1=?", "auto", "0", "<bos>S:0U:1+1=?A:"),
        (USER, "always", "0", "<bos>S:0U:1+1=?A:"),
        (USER, "never", "", "1+1=?"),
        ("1+1=?", "never", "", "1+1=?"),
    ],
)
def test_chat_mode_decides_about_the_template(prompt, chat, system, words):
    assert _words(tokenize(_tokenizer(), prompt, chat=chat, system_prompt=system)) == words


def test_contradictory_settings_are_refused():
    with pytest.raises(ValueError, match=r"data.system_prompt makes prompts a chat"):
        tokenize(_tokenizer(), "1", chat="never", system_prompt="0")
    with pytest.raises(ValueError, match=r"has a system message of its own"):
        tokenize(_tokenizer(), SYSTEM + USER, system_prompt="0")
    with pytest.raises(ValueError, match=r"data.chat: the tokenizer has no chat template"):
        tokenize(_tokenizer(template=None), USER)


def test_batch_is_padded_on_the_left_to_a_bucket():
    examples = [Example(prompt="1+2"), Example(prompt="1" * 17)]
    cfg = DataConfig(task="chain")
    batch = prompt_batch(_tokenizer(), examples, [5, 9], cfg=cfg, pad_id=14)
    assert batch.tokens.shape == (2, 32)
    assert batch.uid.tolist() == [5, 9]
    assert batch.tokens[0].tolist() == [14] * 29 + [1, 10, 2]
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [3, 17])
    assert batch.mask[:, -1].all()


def test_prompt_over_the_limit_is_named_and_never_cut():
    cfg = DataConfig(task="chain", max_prompt_tokens=4)
    examples = [Example(prompt="1+2"), Example(prompt="1+2=3")]
    with pytest.raises(ValueError, match=r"prompt 8 must have 1 to 4 tokens .* got 5: '1\+2=3'"):
        prompt_batch(_tokenizer(), examples, [7, 8], cfg=cfg, pad_id=0)
    assert prompt_batch(_tokenizer(), examples[:1], [7], cfg=cfg, pad_id=0).tokens.shape == (1, 16)


def test_empty_prompt_is_refused():
    with pytest.raises(ValueError, match=r"prompt 0 must have 1 to"):
        prompt_batch(
            _tokenizer(), [Example(prompt="")], [0], cfg=DataConfig(task="chain"), pad_id=0
        )
