"""Predictions of the policy about its own completions: read, scored, and put apart; by hand."""

import json
import math

import numpy as np
import pytest

from jgrpo import algo
from jgrpo.collect import Collected
from jgrpo.predicting import regrouped
from jgrpo.rewards.predictions import mean_predictions, notion_score, prediction
from jgrpo.rewards.score import Scores
from jgrpo.rollout.meter import Meter
from jgrpo.types import Example, Prompts, Rollouts

SAID = {"math_notion": ["Vieta", "modulus", "triangles"], "solution_length": 450, "pass_rate": 5}
PROBLEM = "The sides of a triangle"
SOLUTIONS = ["By Vieta", "By Vieta, and the modulus", "The modulus", "It is 7"]
LENGTHS, CORRECT = [300, 600, 500, 900], [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "rate", "tokens", "notions"),
    [
        (f"I think {json.dumps(SAID)}.", 5 / 8, 450, ("vieta", "modulu", "triangle")),
        ('{"pass_rate": 8, "solution_length": 3.0}', 1.0, None, ()),
        ('{"pass_rate": 9, "solution_length": -1}', None, None, ()),
        ('{"pass_rate": true, "solution_length": "7", "math_notion": "gcd"}', None, None, ()),
        ('{"math_notion": ["class", 3, " "]}', None, None, ("class",)),
        ("{" + "[" * 5000 + "}", None, None, ()),
        ('{"pass_rate": ' + "9" * 5000 + "}", None, None, ()),
        ("no object {at all", None, None, ()),
    ],
)
def test_what_can_be_read_of_a_prediction(text, rate, tokens, notions):
    found = prediction(text)
    assert found.rate == rate if rate is not None else math.isnan(found.rate)
    assert found.tokens == tokens if tokens is not None else math.isnan(found.tokens)
    assert found.notions == notions


def test_notions_of_the_problem_and_of_wrong_solutions_are_worth_nothing():
    right = np.array(CORRECT) > 0
    assert notion_score(("vieta", "modulu", "triangle"), PROBLEM, SOLUTIONS, right) == 0.5
    assert notion_score(("triangle",), PROBLEM, SOLUTIONS, right) == 0
    assert notion_score((), PROBLEM, SOLUTIONS, right) == 0
    assert notion_score(("vieta", "7"), PROBLEM, SOLUTIONS, right) == 0.5


def collected(*, failed=False):
    """Two prompts with four solutions and four predictions each; those of the second say nothing.

    With `failed` nothing is known of the second prompt's solutions.
    """
    texts = [*SOLUTIONS, json.dumps(SAID), "?", "?", "?", *SOLUTIONS, *["?"] * 4]
    lengths = np.array([*LENGTHS, 9, 9, 9, 9] * 2).reshape(2, 8)
    correct = np.array([*CORRECT, 1.0, 0, 0, 0] * 2, np.float32)  # a verifier may like anything
    valid = np.ones(16, bool)
    valid[8:12] = not failed
    mask = np.arange(900) < lengths[..., None]
    prompts = np.array([[5], [6]])
    return Collected(
        examples=[Example(prompt=PROBLEM), Example(prompt=[{"role": "user", "content": PROBLEM}])],
        prompt_ids=np.array([7, 3]),
        rollouts=Rollouts(
            prompts=Prompts(uid=np.array([0, 1]), tokens=prompts, mask=prompts > 0),
            tokens=np.where(mask, np.arange(16).reshape(2, 8, 1), 0),
            mask=mask,
            behavior_logp=np.zeros(mask.shape, np.float32),
            finished=np.ones((2, 8), bool),
        ),
        completion_ids=[[1]] * 16,
        completions=texts,
        scores=Scores(
            names=("right",), columns=correct[:, None], total=correct, valid=valid,
            asked=np.ones(16, bool), failed={}, failures=(), calls=0, calls_per_s=0.0,
        ),
        reference=None, kept=np.ones(2, bool), rounds=1, cursor=2, rollout_s=0.0, meter=Meter(),
        reward_s=0.0,
    )  # fmt: skip


def test_masa_worked_example():
    """Notion 1/2, rate .01^(1/8) = .5623, length 300 < 450 < 600: .6874; what cannot be read: 0."""
    found = regrouped(collected())
    assert found.scores.names == (
        "right", "prediction_rate", "prediction_length", "prediction_notion"
    )  # fmt: skip
    solutions, predictions, _, silent = found.rewards
    assert solutions.tolist() == CORRECT
    np.testing.assert_allclose(predictions, [0.6874, 0, 0, 0], atol=5e-5)
    assert silent.tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(found.scores.columns[4, 1:], [0.5623, 1, 0.5], atol=5e-5)
    assert np.isnan(found.scores.columns[4, 0])  # what the verifier says of it is left out
    assert np.isnan(found.scores.columns[0, 1:]).all()
    assert found.valid.all()


def test_predictions_are_groups_of_their_own():
    found = regrouped(collected())
    assert found.rollouts.mask.shape == (4, 4, 900)
    assert (
        np.asarray(found.rollouts.tokens)[:, :, 0].tolist() == np.arange(16).reshape(4, 4).tolist()
    )
    assert np.asarray(found.rollouts.prompts.tokens).tolist() == [[5], [5], [6], [6]]
    assert found.prompt_ids.tolist() == [7, 7, 3, 3]
    assert [example.prompt for example in found.examples[:2]] == [PROBLEM, PROBLEM]
    made = algo.advantages(algo.METHODS["masa"], found.rewards, algo.Side(valid=found.valid))
    z = [0.75**0.5] * 2
    np.testing.assert_allclose(made.values[0], [*z, -z[0], -z[0]], atol=1e-5)
    assert made.values[3].tolist() == [0, 0, 0, 0]


def test_predictions_of_what_is_not_known_do_not_count():
    found = regrouped(collected(failed=True))
    assert found.valid.tolist() == [[True] * 4, [True] * 4, [False] * 4, [False] * 4]


def test_means_are_over_what_can_be_read():
    texts = [["?", '{"pass_rate": 4}', '{"pass_rate": 2, "solution_length": 9}'], ["?"] * 3]
    found = mean_predictions(texts)
    assert found[0].tolist() == [3 / 8, 9]
    assert np.isnan(found[1]).all()
