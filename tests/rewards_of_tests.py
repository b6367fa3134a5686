"""Reward functions that tests name by `rewards_of_tests:function`; they run in worker processes."""

import os
import time


def poisoned(prompts, completions, poison):
    """The length, but for the prompt `poison` a number that overflows the gradient norm."""
    return [
        (1e30 if len(text) % 2 else -1e30) if prompt == poison else float(len(text) % 5)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def mixed(completions, **columns):
    """Something that differs between completions of any model."""
    return [float(len(text) % 5) for text in completions]


def noted(completions, **columns):
    """The length, after a moment; the file NOTES says when each call began, and of how many."""
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{time.monotonic()} {len(completions)}\n")
    time.sleep(0.02)
    return [float(len(text)) for text in completions]


def scorer(completions, **_):
    """The process of the trainer that this worker serves; -1 if it is alone."""
    return [float(os.environ.get("JGRPO_PROCESS_ID", -1))] * len(completions)


def summed(completions, **_):
    """Something that differs between completions of one length too."""
    return [float(sum(map(ord, text)) % 5) for text in completions]
