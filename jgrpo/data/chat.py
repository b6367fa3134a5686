"""Prompts from text to token ids: chat templates, padding, the limit on their length.

A prompt is cut nowhere: one that is too long is an error. Letters: P prompts, Lp prompt tokens.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from jgrpo.buckets import bucket, left_padded
from jgrpo.config import DataConfig
from jgrpo.types import Example, Message, Prompts


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    *,
    chat: Literal["auto", "always", "never"] = "auto",
    system_prompt: str = "",
) -> list[int]:
    """Returns the token ids of a prompt.

    Messages go through the tokenizer's chat template, up to where the assistant begins to speak.
    Plain text is encoded as it stands, after the BOS token if the tokenizer itself puts one before
    every text; no other special token is added, since an EOS would end the text to be continued.

    Args:
      tokenizer: of the model.
      prompt: plain text or messages.
      chat: `auto` leaves plain text plain, unless there is a system prompt; `always` makes it the
        message of a user; `never` joins the contents of messages by newlines into plain text.
      system_prompt: text of a system message to put first; "" for none.

    Raises:
      ValueError: if the tokenizer has no chat template, if two system prompts meet, or if there is
        one although `chat` is `never`.
    """
    if system_prompt and chat == "never":
        raise ValueError("data.system_prompt makes prompts a chat: clear it, or data.chat=auto")
    if isinstance(prompt, str):
        if chat != "always" and not system_prompt:
            return _encode(tokenizer, prompt)
        prompt = [{"role": "user", "content": prompt}]
    if chat == "never":
        return _encode(tokenizer, "\n".join(message["content"] for message in prompt))
    if system_prompt:
        if prompt[0]["role"] == "system":
            raise ValueError(
                f"data.system_prompt: the prompt {_cut(prompt)} has a system message of its own; "
                "clear one of them"
            )
        prompt = [{"role": "system", "content": system_prompt}, *prompt]
    if tokenizer.chat_template is None:
        raise ValueError(
            f"data.chat: the tokenizer has no chat template, which the prompt {_cut(prompt)} "
            "needs; use data.chat=never to ask it as plain text"
        )
    text = tokenizer.apply_chat_template(
        [dict(message) for message in prompt], add_generation_prompt=True, tokenize=False
    )
    assert isinstance(text, str)
    # The template has written the special tokens itself.
    return tokenizer.encode(text, add_special_tokens=False)


def prompt_batch(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    uids: Sequence[int] | np.ndarray,
    *,
    cfg: DataConfig,
    pad_id: int,
) -> Prompts:
    """Tokenizes the prompts of a rollout and pads them on the left to a bucketed width.

    Args:
      tokenizer: of the model.
      examples: what to ask.
      uids: number of each prompt in the run's order.
      cfg: chat mode, system prompt and the limit on the length.
      pad_id: id to pad with; it may be any, since the mask decides.

    Raises:
      ValueError: naming the prompt, if it is empty or longer than `data.max_prompt_tokens`.
    """
    if len(examples) != len(uids) or not examples:
        raise ValueError(f"got {len(examples)} examples for {len(uids)} uids; want one each")
    rows = [
        tokenize(tokenizer, example.prompt, chat=cfg.chat, system_prompt=cfg.system_prompt)
        for example in examples
    ]
    for row, example, uid in zip(rows, examples, uids, strict=True):
        if not 0 < len(row) <= cfg.max_prompt_tokens:
            raise ValueError(
                f"prompt {uid} must have 1 to {cfg.max_prompt_tokens} tokens "
                f"(data.max_prompt_tokens), got {len(row)}: {_cut(example.prompt)}; "
                "raise the limit or take it out of the data"
            )
    width = bucket(max(map(len, rows)))
    tokens, mask = left_padded(rows, width, pad_id)
    return Prompts(uid=np.asarray(uids, np.int32), tokens=tokens, mask=mask)


def last_message(prompt: str | Sequence[Message]) -> str:
    """What a prompt says last: itself, if it is plain text."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    start = tokenizer.encode("")[:1]
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [*start, *ids] if start == [tokenizer.bos_token_id] else ids


def _cut(prompt: str | Sequence[Message]) -> str:
    text = repr(prompt)
    return text if len(text) <= 80 else text[:77] + "..."
