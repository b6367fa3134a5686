"""Preferences by hand: the loss of pairs, what steps add, the reward of WS-GRPO, the report."""

import jax
import numpy as np
import pytest
import small_models

from jgrpo import algo
from jgrpo.algo.preference import bradley_terry, preferred, steps
from jgrpo.learner.batch import answer_logp
from jgrpo.preferring import report
from jgrpo.types import Batch

F = np.array([0, 0.5, 1.3, 1.1], np.float32)


def side(scores, segments, mask=None):
    mask = np.ones(np.shape(scores), bool) if mask is None else mask
    return algo.Side(prefix_scores=np.asarray(scores), segments=np.asarray(segments), mask=mask)


def test_worked_example_of_the_steps():
    """Scores 0, .5, 1.3, 1.1: r = [.6225,.6900,.4502]."""
    found = steps(F[None, None], np.array([[[0, 1, 2, 2]]]), np.ones((1, 1, 4), bool))
    np.testing.assert_array_equal(np.asarray(found.ends)[0, 0], [True, True, False, True])
    np.testing.assert_allclose(
        np.asarray(found.rewards)[0, 0], [0.622459, 0.689974, 0, 0.450166], atol=1e-6
    )


def test_worked_example_of_a_group():
    """R = [5.5875,.45,5.5375,.40]: advantages [.874,-.858,.858,-.874]."""
    m = algo.METHODS["ws_grpo"]
    # Step rewards whose means are .5875, .45, .5375 and .40: three steps of one token each.
    f = np.zeros((1, 4, 4), np.float32)
    for g, mean in enumerate((0.5875, 0.45, 0.5375, 0.40)):
        f[0, g] = np.arange(4) * np.log(mean / (1 - mean))
    # The fourth token belongs to the last step, so that f_3 is the score before it.
    segments = np.broadcast_to([0, 1, 2, 2], (1, 4, 4))
    rewards = np.array([[1, 0, 1, 0]], np.float32)
    shaped = algo.advantages(
        algo.method("ws_grpo", base="none", scale="none"), rewards, side(f, segments)
    ).values
    np.testing.assert_allclose(np.asarray(shaped), [[5.5875, 0.45, 5.5375, 0.40]], rtol=1e-6)
    values = algo.advantages(m, rewards, side(f, segments)).values
    np.testing.assert_allclose(np.asarray(values), [[0.874, -0.858, 0.858, -0.874]], atol=6e-4)


@pytest.mark.parametrize(("shape", "expected"), [("weak_mean", 0.5), ("weak_sum", 1.0)])
def test_a_number_of_steps_outside_of_the_range_is_fined(shape, expected):
    """Two steps that add nothing: r = .5 each; the range is 3 to 6, the penalty 1."""
    m = algo.method("ws_grpo", base="none", scale="none", shape=shape)
    given = side(np.zeros((1, 1, 4), np.float32), np.array([[[0, 0, 1, 1]]]))
    for low, fine in ((2, 0.0), (3, 1.0)):
        m = algo.method("ws_grpo", base="none", scale="none", shape=shape, step_low=low)
        values = algo.advantages(m, np.zeros((1, 1), np.float32), given).values
        assert float(values[0, 0]) == pytest.approx(expected - fine)


def test_an_empty_completion_has_no_step():
    found = steps(F[None, None], -np.ones((1, 1, 4), int), np.zeros((1, 1, 4), bool))
    assert not np.asarray(found.ends).any()
    assert not np.asarray(found.rewards).any()


def test_what_stands_at_padding_does_not_matter():
    mask = np.array([[[True, True, True, False]]])
    segments = np.array([[[0, 1, 1, -1]]])
    clean = steps(np.array([[[0.0, 1.0, 2.0, 0.0]]]), segments, mask)
    spoiled = steps(np.array([[[0.0, 1.0, 2.0, np.nan]]]), segments, mask)
    for one, other in zip(clean, spoiled, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    # f_0 = 0, f_1 = 1, f_2 = 2 (the last token is not read).
    np.testing.assert_allclose(
        np.asarray(clean.rewards)[0, 0],
        [1 / (1 + np.exp(-1)), 0, 1 / (1 + np.exp(-1)), 0],
        rtol=1e-6,
    )


def test_loss_and_slope_of_pairs_agree_with_the_loops():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(3, 5)).astype(np.float32)
    outcomes = draw.integers(-1, 2, (3, 5)).astype(np.int32)
    outcomes[2] = 1
    pairs = [
        (p, i, j)
        for p in range(3)
        for i in range(5)
        for j in range(5)
        if outcomes[p, i] == 1 and outcomes[p, j] == -1
    ]
    expected = np.mean([np.log1p(np.exp(scores[p, j] - scores[p, i])) for p, i, j in pairs])
    slope = np.zeros((3, 5))
    for p, i, j in pairs:
        chance = 1 / (1 + np.exp(scores[p, i] - scores[p, j])) / len(pairs)
        slope[p, i] -= chance
        slope[p, j] += chance
    loss, found = jax.value_and_grad(bradley_terry)(scores, outcomes)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(np.asarray(found), slope, atol=1e-6)
    assert int(np.asarray(preferred(outcomes)).sum()) == len(pairs)
    assert float(bradley_terry(scores, np.ones((3, 5), np.int32))) == 0


def test_care_bonus_worked_example():
    """Accuracy [1,1,0,1], p = [.9,.6,.99,.8]: bonus [.5,0,0,.5]."""
    m = algo.method("grpo_care", base="none", scale="none", care_margin=0)
    logp = np.log(np.array([[0.9, 0.6, 0.99, 0.8]], np.float32))
    rewards = np.array([[1, 1, 0, 1]], np.float32)
    values = algo.advantages(m, rewards, algo.Side(answer_logp=logp)).values
    np.testing.assert_allclose(np.asarray(values), [[1.5, 1, 0, 1.5]])
    nobody = algo.advantages(m, 0 * rewards, algo.Side(answer_logp=logp)).values
    assert not np.asarray(nobody).any()


def test_the_answer_is_the_last_segment():
    """Segments 0 0 1 1 of which the last token is padding: the mean over the third token alone."""
    draw = small_models.prompts(1)
    logp = np.array([[[-1, -2, -4, -8]]], np.float32)
    batch = Batch(
        prompts=draw, tokens=np.zeros((1, 1, 4), int), mask=np.array([[[True, True, True, False]]]),
        weights=logp, advantages=logp, old_logp=logp, ref_logp=logp,
    )  # fmt: skip
    assert answer_logp(batch, np.array([[[0, 0, 1, 1]]])).tolist() == [[-4.0]]
    assert answer_logp(batch, np.array([[[0, 1, 1, 1]]])).tolist() == [[-3.0]]


def test_report_by_hand():
    """Two pairs: .7311 for a right one, .7311 for a wrong one; both in the bin from .7 to .8."""
    scores = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    correct = np.array([[True, False, False], [False, True, False]])
    told = report(scores[:, :2], correct[:, :2])
    chance = 1 / (1 + np.exp(-1))
    assert told["pairs"] == 2
    assert told["accuracy"] == 0.5
    assert told["brier"] == pytest.approx(((1 - chance) ** 2 + chance**2) / 2)
    assert told["calibration_error"] == pytest.approx(abs(2 * chance - 1) / 2)
    assert report(scores, np.ones((2, 3), bool))["accuracy"] is None
