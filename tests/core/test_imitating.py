"""Predictions that are put right and imitated: chosen, kept in order, trained; by hand."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_models
from quickstart_runs import ROOT
from small_tokenizers import with_json
from test_predicting import SAID, collected

from jgrpo import config_io
from jgrpo.imitating import beside, collected_experts, due
from jgrpo.models.load import load
from jgrpo.predicting import regrouped
from jgrpo.rewards.predictions import corrected, prediction
from jgrpo.strategy import experts
from jgrpo.types import Example

WIDTH = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(str(with_json(tmp_path_factory.mktemp("model") / "tiny")))


def config(**method):
    words = [f"method.{name}={value}" for name, value in method.items()]
    sizes = ["data.num_prompts_per_step=2", "rollout.max_completion_tokens=100"]
    return config_io.load(
        ROOT / "configs" / "quickstart.yaml",
        ["method=masa", *sizes, *words, 'context.predict="?{prompt}"'],
    )


def test_what_was_found_stands_in_the_place_of_what_was_said():
    text = f"so {json.dumps(SAID)} I think"
    found = corrected(text, 3 / 4, 450.4)
    assert (found[:3], found[-8:]) == ("so ", " I think")
    assert json.loads(found[3:-8]) == SAID | {"pass_rate": 6, "solution_length": 450}
    assert prediction(corrected('{"math_notion": ["\\ud800"]}', 1.0, 3.0)).rate == 1.0
    assert corrected('{"math_notion": ["\\ud800"]}', 1.0, 3.0).isascii()


def test_the_best_prediction_of_a_prompt_is_kept_with_the_true_numbers(model):
    """Two of four are right: 4 of 8; 300 and 600 tokens: 450. The other prompt says nothing."""
    cfg, empty = config(), {"experts": experts.fresh(2, WIDTH)}
    found, told = collected_experts(cfg, model, regrouped(collected()), empty, 0)
    kept = found["experts"]
    assert told == {"expert/stored": 1, "expert/trained": 0}
    (owner, tokens), = experts.first(kept, 1)  # fmt: skip
    assert owner == 7
    assert tokens[-1] == model.eos_ids[0]
    written = corrected(json.dumps(SAID), 0.5, 450.0)
    assert tokens[:-1].tolist() == model.tokenizer(written)["input_ids"]
    assert experts.batch_of(kept) == 0
    better, _ = collected_experts(
        config(expert_notion=0.6), model, regrouped(collected()), empty, 0
    )
    assert int(better["experts"].count) == 0  # its score is .5
    assert collected_experts(cfg, model, regrouped(collected()), {}, 0) == ({}, {})


def test_two_are_a_batch_in_the_order_in_which_they_came(model):
    rows = [[3, 4, 1], [5, 1], [6, 7, 8, 1]]
    waiting = experts.after(experts.fresh(2, WIDTH), 0, [4, 9], rows[:2])
    assert experts.batch_of(waiting) == 2
    source = [Example(prompt=f"{i}+1=?") for i in range(10)]
    ready = due(config(), model, source, {"experts": waiting})
    assert [model.tokenizer.decode(prompt) for prompt, _ in ready] == ["?4+1=?", "?9+1=?"]
    assert [tokens.tolist() for _, tokens in ready] == rows[:2]
    left = experts.after(waiting, 1, [2], rows[2:])
    assert [(owner, x.tolist()) for owner, x in experts.first(left, 2)] == [
        (9, rows[1]), (2, rows[2]),
    ]  # fmt: skip
    assert not np.asarray(left.tokens)[2:].any()
    assert due(config(), model, source, {"experts": experts.fresh(2, WIDTH)}) == []
    assert due(config(), model, source, {}) == []


def test_the_loss_gains_the_mean_log_prob_of_what_is_imitated():
    """Plain gradient descent at rate 1: the change of the weights is that of the two terms."""
    drawn = small_models.completed(small_models.prompts(4), 2, 6)
    part = small_models.weighed(drawn, np.full((4, 2), 0.5))
    part = dataclasses.replace(part, unit_ratio=np.zeros(part.mask.shape, bool))
    trained = [([3, 4, 5, 6, 7, 8, 9], np.array([10, 11, 1])), ([12, 13], np.array([14] * 8))]
    assert beside(part, [], 0.5) is part
    both = beside(part, trained, 0.5)
    assert both.mask.shape == (8, 2, 8)  # as many groups once more, two of them empty
    assert both.prompts.tokens.shape == (8, 7)
    assert both.mask[4:].sum(axis=(1, 2)).tolist() == [3, 8, 0, 0]
    assert both.weights[4:].sum() == pytest.approx(1.0)
    alone = dataclasses.replace(
        both, weights=np.where(np.arange(8)[:, None, None] < 4, 0, both.weights)
    )
    learner = small_models.learner()
    after = [
        jax.device_get(learner.update(learner.init(small_models.model()[2]), batch)[0].params)
        for batch in (part, both, alone)
    ]
    begun = jax.device_get(small_models.model()[2])
    changes = [jax.tree.map(np.subtract, params, begun) for params in after]
    sums = jax.tree.map(np.add, changes[0], changes[2])
    for one, two in zip(jax.tree.leaves(sums), jax.tree.leaves(changes[1]), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=2e-5)
    logp = [np.asarray(learner.logps(params, alone)) for params in (begun, after[2])]
    gain = [np.where(alone.mask, x, 0)[4:6].sum() for x in logp]
    assert gain[1] > gain[0]
