"""Rewards that weigh length: the worked examples of the specification, and their edges."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo import algo
from jgrpo.algo.shaping import SHAPES

LONG = algo.method("train_long_think_short", budget_start_tokens=100)
BAND = algo.method("train_long_think_short", budget_start_tokens=100, shape="budget_band")
SWITCH = algo.method("grpo_lambda")


def shaped(m, rewards, lengths, **facts):
    rewards, lengths = jnp.asarray(rewards, jnp.float32), jnp.asarray(lengths)
    facts = {"valid": jnp.ones(lengths.shape, bool), "step": jnp.asarray(0), **facts}
    side = algo.Side(lengths=lengths, **facts)
    return np.asarray(SHAPES[m.shape].function(m, rewards, side))


def test_triangle_and_band_of_the_budget():
    lengths, nothing = [[50, 100, 150, 200, 230]], np.zeros((1, 5, 1))
    triangle = shaped(LONG, nothing, lengths) / LONG.length_weight
    np.testing.assert_allclose(triangle, [[0.5, 1.0, 0.5, 0.0, 0.0]], atol=1e-6)
    band = shaped(BAND, nothing, lengths) / BAND.length_weight
    np.testing.assert_allclose(band, [[1.0, 1.0, 0.5, 0.0, 0.0]], atol=1e-6)


def test_worked_example_of_the_budgeted_reward():
    """Correct, 150 tokens for a budget of 100, in the format."""
    np.testing.assert_allclose(shaped(LONG, [[[1.0, 1.0]]], [[150]]), [[0.85]], atol=1e-6)


def test_the_budget_shrinks_with_the_steps():
    at = lambda step: shaped(LONG, np.zeros((1, 1, 1)), [[70]], step=jnp.asarray(step))[0, 0]  # noqa: E731
    np.testing.assert_allclose([at(0), at(150)], [0.3 * 0.7, 0.3], atol=1e-6)


def test_worked_example_of_the_switch():
    rewards = [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    lengths = [[100, 200, 300, 400], [100, 200, 300, 400], [9, 9, 9, 9]]
    found = shaped(SWITCH, rewards, lengths)
    np.testing.assert_allclose(found[0], [0.955, 0.900, 0.845, 0.0], atol=5e-4)
    np.testing.assert_array_equal(found[1:], rewards[1:])


def test_edges_of_the_switch():
    # One correct completion: half of the fine; none: zeros; ties go to the first prompt.
    np.testing.assert_allclose(shaped(SWITCH, [[1, 0]], [[5, 9]]), [[0.9, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(shaped(SWITCH, [[0, 0]], [[5, 9]]), [[0, 0]])
    both = shaped(SWITCH, [[1, 0], [1, 0]], [[5, 9], [5, 9]])
    np.testing.assert_allclose(both, [[0.9, 0.0], [1.0, 0.0]], atol=1e-6)
    assert shaped(algo.method("grpo_lambda", length_alpha=0.0), [[1, 0]], [[5, 9]])[0, 0] == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.floats(0.0, 1.0))
def test_the_switch_takes_a_share_of_the_prompts_rounded_up(prompts, share):
    m = algo.method("grpo_lambda", switch_share=share)
    found = shaped(m, np.ones((prompts, 2)), np.full((prompts, 2), 7))
    assert (found < 1).all(axis=1).sum() == max(1, int(np.ceil(round(share * prompts, 9))))


@pytest.mark.parametrize(
    ("thinks", "answers", "length", "expected"),
    [(1, 1, 768, 1.75), (1, 1, 1536, 2), (0, 1, 2304, 1.0), (1, 0, 768, 0), (1, 0, 3072, -1)],
)
def test_worked_examples_of_the_surrogate(thinks, answers, length, expected):
    m = algo.method("format_length")
    found = shaped(m, [[[thinks, answers]]], [[length]], max_completion_tokens=3072)
    np.testing.assert_allclose(found, [[expected]], atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "expected"), [((1, 1, 0.8), 2.8), ((1, 0, 0.8), 1.0), ((0, 0, 0.9), 0.0)]
)
def test_worked_examples_of_the_gated_sum(columns, expected):
    m = algo.method("posterior_grpo")
    np.testing.assert_allclose(shaped(m, [[columns]], [[1]]), [[expected]], atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [((1, 1, 0.5 * 0.6065307), 0.4426), ((1, 0, 1), 0.1), ((0, 1, 1), 0.0), ((1, 1, 1), 1.0)],
)
def test_worked_examples_of_the_progressive_reward(columns, expected):
    """Parsed, in the form, quality 1/2 at 12 tokens for 8: .1 + .1 + .8 (1/2) exp(1 - 12/8)."""
    m = algo.method("vspo", shape="progressive", reward_weights=(0.1, 0.1, 0.8))
    np.testing.assert_allclose(shaped(m, [[columns]], [[1]]), [[expected]], atol=5e-5)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_weights_of_another_number_than_columns_are_refused(weights):
    m = algo.method("vspo", shape="progressive", reward_weights=weights)
    with pytest.raises(ValueError, match=f"got 2 columns and {len(weights)} weights"):
        algo.advantages(m, jnp.ones((1, 2, 2)))


@pytest.mark.parametrize(
    ("name", "columns"),
    [("train_long_think_short", 3), ("format_length", 3), ("posterior_grpo", 2)],
)
def test_another_number_of_columns_is_refused(name, columns):
    side = {"lengths": jnp.ones((1, 2), int), "step": jnp.asarray(0), "max_completion_tokens": 9}
    with pytest.raises(ValueError, match=f"reward columns, .*got {columns}"):
        algo.advantages(algo.method(name), jnp.ones((1, 2, columns)), algo.Side(**side))
