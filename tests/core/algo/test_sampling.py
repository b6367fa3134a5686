import numpy as np
import oracles

from jgrpo.algo import (
    METHODS,
    Side,
    dynamic_keep,
    opposite_pair,
    predicted_trivial,
    uncertainty_weights,
)

OUTCOMES = np.concatenate([oracles.FB, np.zeros((1, 4)), np.ones((1, 4))]).astype(np.float32)


def test_dynamic_sampling_keeps_groups_of_mixed_outcome():
    assert dynamic_keep(METHODS["dapo"], OUTCOMES).tolist() == [True, True, False, False]


def test_only_solved_groups_are_dropped_where_a_virtual_completion_is_imagined():
    """A2, with the groups of A1."""
    assert dynamic_keep(METHODS["ngrpo"], OUTCOMES).tolist() == [True, True, True, False]


def test_prompts_of_uncertain_outcome_come_more_often():
    """A3: v = .5, .9, 0."""
    weights = np.asarray(uncertainty_weights(np.array([0.5, 0.9, 0.0], np.float32)))
    np.testing.assert_allclose(weights, [0.55, 0.35, 0.05], rtol=1e-6)
    chances = weights / weights.sum()
    np.testing.assert_allclose(chances, [0.578947, 0.368421, 0.052632], atol=6e-7)


def test_a_pair_is_a_hard_prompt_and_an_easy_one():
    """A8; then a band without prompts."""
    rates = np.array([0, 0.125, 0.5, 0.75, 0.875, 1], np.float32)
    assert opposite_pair(rates, group_size=8) == (1, 4)
    assert opposite_pair(np.array([0.5, 1.0], np.float32), group_size=8) == (None, None)


def test_prompts_are_skipped_where_predictions_agree_on_the_outcome():
    """A9; predictions of 3/4 agree too, but on nothing that is certain."""
    predicted = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0.5], [0.75] * 4], np.float32)
    assert predicted_trivial(predicted, 0.1).tolist() == [True, True, False, False]


def test_uniform_sampling_keeps_every_group():
    assert dynamic_keep(METHODS["grpo"], OUTCOMES).tolist() == [True] * 4


def test_outcomes_decide_where_rewards_hold_other_terms():
    """All right, with different brevity bonuses: nothing to learn about being right."""
    rewards = np.array([[1.0, 1.1], [0.0, 1.1]], np.float32)
    side = Side(correct=np.array([[True, True], [False, True]]))
    assert dynamic_keep(METHODS["dapo"], rewards).tolist() == [True, True]
    assert dynamic_keep(METHODS["dapo"], rewards, side).tolist() == [False, True]


def test_invalid_rows_do_not_make_a_group_mixed():
    rewards = np.array([[1, 1, np.nan], [1, 0, np.nan], [1, np.nan, np.nan]], np.float32)
    side = Side(valid=~np.isnan(rewards))
    assert dynamic_keep(METHODS["dapo"], rewards, side).tolist() == [False, True, False]
