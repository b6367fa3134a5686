"""Reward functions as users write them, for TRL or for here; run in worker processes."""

import asyncio
import os
import re
import time


def by_length(completions, **kwargs):
    return [float(len(text)) for text in completions]


def sees(prompts, completions, level):
    return [float(value) for value in level]


def scaled(*, completions, factor=1.0):
    return [factor * len(text) for text in completions]


def all_columns(*, completions, **columns):
    return [float(len(columns)) for _ in completions]


def by_position(completions, /):
    return [0.0 for _ in completions]


def returns(*, completions, what):
    return {
        "none": [None] * len(completions),
        "nan": [float("nan")] * len(completions),
        "huge": [1e300] * len(completions),
        "text": ["1"] * len(completions),
        "short": [1.0],
        "number": 1.0,
    }[what]


def shaky(completions, **_):
    if any(text == "bad" for text in completions):
        raise ValueError("a bad completion")
    return [float(len(text)) for text in completions]


def pedantic(completions, **_):
    return [None if text == "bad" else 1.0 for text in completions]


def backwards(completions, slow, **_):
    """The first completions take longest."""
    time.sleep(slow[0])
    return [float(len(text)) for text in completions]


def process(completions, **_):
    return [float(os.getpid()) for _ in completions]


# For functions that compare completions.


def longest(completions, **_):
    return [float(len(text) == max(map(len, completions))) for text in completions]


def calls_together(completions, **_):
    return [float(len(completions)) for _ in completions]


# Written for TRL's GRPOTrainer, in the forms of its documentation.


def trl_all_by_name(prompts, completions, completion_ids, **columns):
    assert len(prompts) == len(completions) == len(completion_ids) == len(columns["answer"])
    return [float(len(ids)) for ids in completion_ids]


def trl_reads_kwargs(completions, **kwargs):
    return [
        1.0 if text == answer else 0.0
        for text, answer in zip(completions, kwargs["answer"], strict=True)
    ]


def trl_some_have_no_reward(prompts, completions, kind, **kwargs):
    return [1.0 if which == "math" else None for which in kind]


async def trl_async(prompts, completions, **kwargs):
    await asyncio.sleep(0.01)
    return await asyncio.gather(*(_judge(text) for text in completions))


async def _judge(text):
    await asyncio.sleep(0)
    return float(len(text))


def trl_state(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step) for _ in completions]


def trl_logs(completions, log_extra, log_metric, **kwargs):
    log_extra("text", list(completions))
    log_metric("share", 0.5)
    return [1.0 for _ in completions]


def trl_chat_format(completions, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    assert completions[0][0]["role"] == "assistant"
    return [1.0 if re.match(r"^<think>.*?</think>", content) else 0.0 for content in contents]


def trl_array(completions, **kwargs):
    import numpy as np

    return np.array([len(text) for text in completions], np.float32) / 2
