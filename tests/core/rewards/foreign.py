"""Reward functions as users write them, good and bad; imported by the worker processes too."""

import os
import time


def by_length(completions, **kwargs):
    return [float(len(text)) for text in completions]


def sees(prompts, completions, level):
    return [float(value) for value in level]


def scaled(*, completions, factor=1.0):
    return [factor * len(text) for text in completions]


def all_columns(*, completions, **columns):
    return [float(len(columns)) for _ in completions]


def returns(*, completions, what):
    return {
        "none": [None] * len(completions),
        "nan": [float("nan")] * len(completions),
        "huge": [1e300] * len(completions),
        "text": ["1"] * len(completions),
        "short": [1.0],
        "number": 1.0,
    }[what]


def behave(*, how):
    if how == "hang":
        while True:
            pass
    if how == "sleep":
        time.sleep(60)
    if how == "exit":
        os._exit(3)
    if how == "quit":
        raise SystemExit
    if how == "raise":
        raise KeyError("no such thing")
    if how == "pid":
        return os.getpid()
    return how
