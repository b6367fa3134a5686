"""Who is asked: the worked examples of the specification, laws of the draws, refilled groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo import algo
from jgrpo.algo.drawing import by_uncertainty, in_pairs, rarity
from jgrpo.algo.refilling import refill
from jgrpo.algo.sampling import uncertainty_weights
from jgrpo.algo.trackers import BetaTracker, SuccessRates

KEY = jax.random.key(7)
PAIRING = algo.method("pairing")
VSPO = algo.method("vspo")
rates = st.lists(st.sampled_from([0.0, 0.0625, 0.125, 0.25, 0.5, 0.75, 0.9375, 1.0]), min_size=6)


def test_weights_of_single_stream_are_the_worked_example():
    """(alpha, beta) = (4, 4), (7.5, .5), (1, 7): probabilities .450, .239, .311."""
    state = BetaTracker(alpha=jnp.array([4, 7.5, 1]), beta=jnp.array([4, 0.5, 7]))
    values, _ = algo.known(algo.method("spo"), state, jnp.arange(3))
    weights = uncertainty_weights(values)
    np.testing.assert_allclose(weights / weights.sum(), [0.450, 0.239, 0.311], atol=5e-4)


def test_priority_draws_by_its_weights():
    """The first of a draw without replacement is drawn by the weights: 4,000 draws, 4 deviations.

    Rates 1/2, .9 and 0 weigh .55, .35 and .05.
    """
    m, values = algo.method("spo"), jnp.array([0.5, 0.9, 0.0])
    keys = jax.random.split(KEY, 4000)
    first = jax.vmap(lambda key: by_uncertainty(m, values, jnp.ones(3, bool), key, 1)[0])(keys)
    share = np.bincount(np.asarray(first), minlength=3) / 4000
    expected = np.array([0.55, 0.35, 0.05]) / 0.95
    assert (abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_a_prompt_not_asked_counts_as_even_whatever_its_rate():
    m, key = algo.method("spo"), jax.random.key(1)
    seen = jnp.array([True] * 20 + [False] * 20)
    found = by_uncertainty(m, jnp.where(seen, 0.5, 0.0), seen, key, 40)
    same = by_uncertainty(m, jnp.full(40, 0.5), jnp.ones(40, bool), key, 40)
    assert found.tolist() == same.tolist()


def test_without_a_floor_a_certain_prompt_comes_last():
    m = algo.method("spo", priority_floor=0.0)
    values = jnp.array([0.0, 0.5, 1.0, 0.3])
    found = by_uncertainty(m, values, jnp.ones(4, bool), KEY, 4)
    assert set(found[:2].tolist()) == {1, 3}


def test_pairs_come_first_then_unknown_prompts_then_others():
    values = jnp.array([0.5, 0.125, 0.875, 0.0, 0.25, 0.75, 0.0625, 0.0])
    seen = jnp.array([True] * 7 + [False])
    found = in_pairs(PAIRING, values, seen, KEY, 6).tolist()
    kinds = rarity(PAIRING, values, seen)[jnp.array(found)].tolist()
    assert kinds[:4] == [1, -1, 1, -1]  # two easy prompts, so two pairs
    assert found[4] == 7  # not asked yet
    assert found[5] in {0, 1, 3, 4, 6}


@settings(deadline=None, max_examples=12)
@given(rates, st.integers(0, 100), st.data())
def test_draws_are_different_places_and_pairs_are_as_many_as_there_are(values, seed, data):
    count = data.draw(st.integers(1, len(values)))
    seen = jnp.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    p, key = jnp.array(values), jax.random.key(seed)
    for name in ("pairing", "spo"):
        m = algo.method(name)
        places = algo.drawing.DRAWS[m.draw].function(m, p, seen, key, count).tolist()
        assert len(set(places)) == count
        assert set(places) <= set(range(len(values)))
    kinds = np.asarray(rarity(PAIRING, p, seen))
    pairs = min((kinds == 1).sum(), (kinds == -1).sum(), count // 2)
    drawn = in_pairs(PAIRING, p, seen, key, count).tolist()
    assert kinds[drawn][: 2 * pairs].tolist() == [1, -1] * pairs


def test_too_few_candidates_are_refused_by_number():
    state = SuccessRates(rate=jnp.zeros(9), seen=jnp.zeros(9, bool))
    with pytest.raises(ValueError, match="8 prompts are to be drawn from 3 candidates"):
        algo.draw(PAIRING, state, np.arange(3), KEY, 8)


def test_rare_prompts_weigh_more_after_their_statistics():
    """One of four solved, of a prompt known at 1/4, at 1/2, and of one not asked: 2 A, A, A."""
    state = SuccessRates(rate=jnp.array([0.25, 0.5, 0.25]), seen=jnp.array([True, True, False]))
    side = algo.Side(prompt_ids=np.arange(3))
    made = algo.advantages(PAIRING, jnp.array([[1.0, 0, 0, 0]] * 3), side, state)
    np.testing.assert_allclose(made.values[1], [1.5, -0.5, -0.5, -0.5], atol=1e-5)
    np.testing.assert_allclose(made.values[0], 2 * made.values[1], atol=1e-5)
    np.testing.assert_array_equal(made.values[2], made.values[1])
    assert made.state.rate.tolist() == [0.25] * 3  # and this step's outcome is remembered
    assert made.state.seen.tolist() == [True] * 3


def test_groups_without_a_gradient_are_replaced_and_copies_share_their_weight():
    """Two of five groups are mixed, so three places go to copies of these."""
    rewards = np.array([[1, 1], [0, 1], [0, 0], [1, 0], [0, 0]], np.float32)
    group, weight = refill(VSPO, rewards, np.ones((5, 2), bool), KEY)
    assert group[jnp.array([1, 3])].tolist() == [1, 3]
    assert set(group.tolist()) <= {1, 3}
    copies = np.bincount(np.asarray(group))[np.asarray(group)]
    np.testing.assert_allclose(weight, np.minimum(1, 2 / copies))


@settings(deadline=None, max_examples=12)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=9))
def test_refilling_keeps_what_has_a_gradient_and_nothing_else(outcomes):
    rewards = np.array(outcomes, np.float32)
    group, weight = (np.asarray(x) for x in refill(VSPO, rewards, rewards < 2, KEY))
    mixed = rewards.max(1) > rewards.min(1)
    if not mixed.any():
        assert group.tolist() == list(range(len(rewards)))
    else:
        assert mixed[group].all()
        assert (group[mixed] == np.flatnonzero(mixed)).all()
    copies = np.bincount(group, minlength=len(rewards))
    if mixed.any():
        assert (copies[group] * weight <= VSPO.copies_max + 1e-6).all()


def test_higher_task_values_are_copied_more():
    """Rates 1/8 and 7/8 are worth .656 and .281: of 3,000 places 70 % go to the first."""
    rare, common = np.eye(8, dtype=np.float32)[0], 1 - np.eye(8, dtype=np.float32)[0]
    rewards = np.concatenate([[rare, common], np.zeros((3000, 8), np.float32)])
    group = np.asarray(refill(VSPO, rewards, np.ones(rewards.shape, bool), KEY).group)[2:]
    share, expected = (group == 0).mean(), 0.65625 / (0.65625 + 0.28125)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 3000)


def test_worked_example_of_the_row_mask():
    """L_max 64, lengths 64, 64, 64, 40, 64: only the first row is spared."""
    m = algo.method("microcoder_grpo")
    side = algo.Side(
        valid=np.ones((1, 5), bool),
        truncated=np.array([[64, 64, 64, 40, 64]]) == 64,
        non_incorrect=np.array([[1, 1, 0, 1, 1]], bool),
        repeats=np.array([[0, 0, 0, 0, 1]], bool),
        chance=np.array([[0.1, 0.9, 0.1, 0.1, 0.1]], np.float32),
    )
    rewards = jnp.array([[0.0, 1.0, 0.0, 1.0, 0.0]])
    made = algo.advantages(m, rewards, side)
    assert made.keep.tolist() == [[False, True, True, True, True]]
    plain = algo.advantages(algo.method("microcoder_grpo", row_mask="none"), rewards)
    np.testing.assert_array_equal(made.values[0, 1:], plain.values[0, 1:])
    assert made.values[0, 0] == 0
    assert plain.values[0, 0] != 0


def test_a_completion_repeats_itself_if_its_last_tokens_stand_there_twice():
    tokens = np.array([[[1, 2, 1, 2, 9], [1, 2, 1, 2, 9], [3, 1, 1, 7, 7], [2, 2, 7, 7, 7]]])
    mask = np.arange(5) < np.array([[4], [5], [3], [2]])[None]
    assert algo.is_repeat(tokens, mask, 1).tolist() == [[False, False, True, True]]
    assert algo.is_repeat(tokens, mask, 2).tolist() == [[True, False, False, False]]
