"""What is stored and what comes back: the worked example, and laws of the draw."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo import algo
from jgrpo.algo.replaying import bucket_probs

M = algo.METHODS["prioritized_replay"]
SUCCESSES = np.repeat([1, 3, 4, 7], [10, 5, 20, 2])


def test_worked_example_of_the_buckets():
    """Buckets {1: 10, 3: 5, 4: 20, 7: 2}: .007, .372, .614, .007."""
    probs = bucket_probs(M, np.bincount(SUCCESSES, minlength=9))
    np.testing.assert_allclose(probs[[1, 3, 4, 7]], [0.007, 0.372, 0.614, 0.007], atol=5e-4)
    assert probs.sum() == pytest.approx(1)
    assert not probs[[0, 2, 5, 6, 8]].any()


def test_buckets_far_from_the_middle_of_a_large_group_are_drawn_from():
    """One success of 128 is 63 deviations away: the density itself is 0 in float64."""
    successes = np.ones(5, np.int64)
    probs = bucket_probs(M, np.bincount(successes, minlength=129))
    assert probs[1] == probs.sum() == 1
    assert set(algo.replay(M, successes, 128, jax.random.key(0), 3)) < set(range(5))


def test_single_draws_follow_the_buckets_and_are_even_within():
    """4,000 draws, 4 deviations."""
    keys = jax.random.split(jax.random.key(3), 4000)
    drawn = np.array([algo.replay(M, SUCCESSES, 8, key, 1)[0] for key in keys])
    expected = bucket_probs(M, np.bincount(SUCCESSES, minlength=9))
    share = np.bincount(SUCCESSES[drawn], minlength=9) / 4000
    assert (abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4000)).all()
    of_four = np.bincount(drawn[SUCCESSES[drawn] == 4], minlength=35)[15:35]
    mean = of_four.mean()
    assert (abs(of_four - mean) < 5 * np.sqrt(mean)).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 8), max_size=30), st.integers(0, 40), st.integers(0, 9))
def test_a_draw_has_no_prompt_twice_and_as_many_as_there_are(successes, count, seed):
    found = algo.replay(M, np.array(successes, int), 8, jax.random.key(seed), count)
    assert len(set(found.tolist())) == len(found) == min(count, len(successes))


def test_a_bucket_that_is_used_up_gives_way_to_the_others():
    """One prompt at half of the group, which nearly every draw names, and five far off."""
    found = algo.replay(M, np.array([4, 1, 1, 1, 1, 1]), 8, jax.random.key(0), 4)
    assert 0 in found
    assert len(found) == 4


def test_nothing_comes_back_without_the_slot():
    assert algo.replay(algo.METHODS["grpo"], SUCCESSES, 8, jax.random.key(0), 5).size == 0


def test_right_rows_of_mixed_groups_are_stored():
    """0 < successes < G: a group all right is retired, one all wrong has nothing to store."""
    correct = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
    valid, finished = np.ones((4, 4), bool), np.ones((4, 4), bool)
    valid[3, 3], finished[0, 2] = False, False  # the last group is all right, as far as it counts
    assert algo.admitted(correct, valid, finished).tolist() == [
        [True, False, False, False],
        *[[False] * 4] * 3,
    ]
    assert algo.all_right(correct, valid).tolist() == [False, True, False, True]
    assert not algo.all_right(correct, np.zeros((4, 4), bool)).any()


def test_one_row_of_a_group_comes_back_against_what_was_recorded():
    zeros = np.zeros((2, 4), int)
    seen = algo.Seen(
        rounds=(), step=1, steps=2, room=9, prompt_ids=np.arange(2), drawn=zeros[:, 0],
        noise=zeros * 0.0, lengths=zeros, stored=np.array([5, 0]),
    )  # fmt: skip
    plan = algo.plan(M, 4, 2)
    fresh, back, plain = plan.wants(seen).wants
    assert (fresh.prompt, fresh.first, fresh.count) == (0, 0, 3)
    assert (back.prompt, back.first, back.count, back.begin) == (0, 3, 1, "stored")
    assert (back.tokens, back.drawn, back.ratio) == (5, False, algo.Ratio.RECORDED)
    assert (plain.prompt, plain.first, plain.count) == (1, 0, 4)
    assert plan.finish(seen).place.tolist() == [[0, 1, 2, 3]] * 2


def test_a_ratio_to_what_was_recorded_is_reshaped_and_not_clipped():
    """A = 2, x = 3 and 1/2: x / (x + .1) = .967742 and .833333, over two rows of 4 tokens."""
    m = algo.method("prioritized_replay", constant_length_tokens=4)
    then = np.full((2, 2), -1.5, np.float32)
    now = then + np.log(np.array([[3, 0.5], [1, 1]], np.float32))
    loss, metrics = algo.policy_loss(
        m, now, old_logp=then, mask=np.ones((2, 2), bool), advantages=np.array([2, 0], np.float32),
        off_policy=np.array([[True, True], [False, False]]),
    )  # fmt: skip
    assert float(loss) == pytest.approx(-2 * (0.967742 + 0.833333) / 8, rel=1e-5)
    assert metrics["ratio/clip_fraction"] == 0
