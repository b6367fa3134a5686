"""Writes the configuration and the character tokenizer of the embedded tiny model.

    python scripts/make_tiny_tokenizer.py

Everything in jgrpo/assets/tiny except the weights, which `configs/sft_tiny.yaml` trains.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jgrpo.models.architecture import Architecture, num_params, to_hf

SPECIALS = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "0123456789+-*/=();#?.,% abcdefghijklmnopqrstuvwxyz\n:^"
TARGET = Path(__file__).resolve().parents[1] / "jgrpo" / "assets" / "tiny"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; an unknown character becomes <unk>."""
    vocab = {token: index for index, token in enumerate((*SPECIALS, *CHARACTERS))}
    # Every id can be drawn by the sampler, so that none may be left without a text.
    assert len(vocab) % 8 == 0, f"{len(vocab)} tokens; accelerators want a multiple of 8"
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def make_architecture(vocab_size: int) -> Architecture:
    """Half a million parameters: small enough for a laptop, deep enough for carried sums."""
    return Architecture(
        family="qwen3",
        vocab_size=vocab_size,
        d_model=96,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_width=32,
        ffn_width=320,
        rope_theta=10000.0,
        tied_embeddings=True,
        qk_norm=True,
        max_positions=1024,
    )


def main() -> None:
    """Writes the files and prints what they describe."""
    tokenizer = make_tokenizer()
    arch = make_architecture(len(tokenizer))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    TARGET.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(TARGET))
    config = {**to_hf(arch), "torch_dtype": "float32", "bos_token_id": None, **ids}
    for name, content in (("config.json", config), ("generation_config.json", ids)):
        (TARGET / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{TARGET}: {len(tokenizer)} tokens, {num_params(arch):,} parameters")


if __name__ == "__main__":
    main()
