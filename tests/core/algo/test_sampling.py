import numpy as np
import oracles

from jgrpo.algo import METHODS, Side, dynamic_keep

OUTCOMES = np.concatenate([oracles.FB, np.zeros((1, 4)), np.ones((1, 4))]).astype(np.float32)


def test_dynamic_sampling_keeps_groups_of_mixed_outcome():
    assert dynamic_keep(METHODS["dapo"], OUTCOMES).tolist() == [True, True, False, False]


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
