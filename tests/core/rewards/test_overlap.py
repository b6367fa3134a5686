"""Completions are scored while others are still decoded, and that changes nothing."""

import os

import numpy as np
import pytest
from small_models import mesh, model, prompts, tokenizer

from jgrpo.config import RewardConfig, RewardFunctionConfig
from jgrpo.data.tasks import Task
from jgrpo.keys import named_key, root_key
from jgrpo.rewards.score import begin, build, close, finish
from jgrpo.rollout.engine import Engine
from jgrpo.rollout.sample import Sampling
from jgrpo.types import Example

EOS = (1, 5, 9, 14)
GROUP_SIZE = 3
NUM_PROMPTS = 4
TASK = Task(name="mine", train=(), heldout=())


@pytest.fixture
def generate(root):
    def run(on_finished=None, stop=()):
        _, graphdef, params = model("llama")
        engine = Engine(
            graphdef=graphdef,
            mesh=mesh(1),
            tokenizer=tokenizer(root),
            eos_ids=EOS,
            chunk_tokens=3,
        )
        return engine.generate(
            params,
            prompts(NUM_PROMPTS),
            named_key(root_key(0), 0, "rollout"),
            group_size=GROUP_SIZE,
            max_tokens=20,
            sampling=Sampling(temperature=1.0),
            stop=stop,
            on_finished=on_finished,
        )

    return run


@pytest.fixture
def rewards(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    specs = [
        RewardFunctionConfig(name="foreign:backwards"),
        RewardFunctionConfig(name="foreign:longest", per="group"),
    ]
    made = build(specs, TASK, RewardConfig(workers=2))
    yield made
    close(made)


def _ids(rollouts):
    width = rollouts.tokens.shape[-1]
    rows = zip(rollouts.tokens.reshape(-1, width), rollouts.mask.reshape(-1, width), strict=True)
    return [tokens[mask].tolist() for tokens, mask in rows]


def test_what_is_reported_early_is_what_comes_out(generate):
    """Each at most once, with its final tokens; those that run into the limit never."""
    seen: list[tuple[int, list[int]]] = []
    rollouts = generate(lambda row, tokens: seen.append((row, tokens)))
    final = _ids(rollouts)
    assert 0 < len(seen) <= int(rollouts.finished.sum())
    assert len({row for row, _ in seen}) == len(seen)
    assert all(final[row] == tokens for row, tokens in seen)
    assert _ids(generate()) == final


def test_scores_come_while_the_rest_is_decoded(generate, rewards):
    """The first reward sleeps, and the decoding itself waits for one answer before it goes on."""
    examples = [Example(prompt="?", columns={"slow": 0.05})] * NUM_PROMPTS
    scoring = begin(rewards, examples, group_size=GROUP_SIZE)
    early: list[int] = []

    def hand_over(row, tokens):
        scoring.add(row, "x" * len(tokens), tokens)
        if not early:
            next(iter(scoring._pending.values())).result(60)
            early.append(row)

    rollouts = generate(hand_over)
    assert early
    for row, tokens in enumerate(_ids(rollouts)):
        scoring.add(row, "x" * len(tokens), tokens)
    overlapped = finish(scoring)
    after = begin(rewards, examples, group_size=GROUP_SIZE)
    for row, tokens in enumerate(_ids(rollouts)):
        after.add(row, "x" * len(tokens), tokens)
    np.testing.assert_array_equal(overlapped.columns, finish(after).columns)
    assert overlapped.calls == NUM_PROMPTS * GROUP_SIZE + NUM_PROMPTS
