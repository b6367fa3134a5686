import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jgrpo.algo import method, token_weights
from jgrpo.algo.methods import SLOTS

ROWS = {w: method("grpo", weights=w, constant_length_tokens=4) for w in SLOTS["weights"]}
masks = arrays(bool, st.sampled_from([(1, 1), (2, 3), (4, 5)]))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("token_mean", 2.5),
        ("sequence_mean", 3.0),
        ("sequence_sum", 5.0),
        ("constant_length", 0.833333),
        ("token_sum", 10.0),
        ("sequence_mean_all", 2.0),
        ("sequence_sum_constant", 1.25),
    ],
)
def test_worked_example_with_an_empty_row(weights, expected):
    """Losses 1, 2, 3 in one row, 4 in another, a third row empty; L is 4."""
    losses = np.array([[1, 2, 3], [4, 0, 0], [0, 0, 0]])
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    got = np.sum(np.asarray(token_weights(ROWS[weights], mask)) * losses)
    np.testing.assert_allclose(got, expected, atol=6e-7)


@pytest.mark.parametrize("weights", ROWS)
def test_batch_without_tokens_has_zero_weights(weights):
    got = token_weights(ROWS[weights], np.zeros((2, 3), bool))
    assert np.array_equal(got, np.zeros((2, 3)))


@pytest.mark.parametrize("weights", ROWS)
def test_padding_wider_changes_no_weight(weights):
    mask = np.array([[1, 1], [1, 0]], bool)
    wide = np.pad(mask, ((0, 0), (0, 7)))
    got = np.asarray(token_weights(ROWS[weights], wide))
    assert np.array_equal(got[:, :2], token_weights(ROWS[weights], mask))


@settings(max_examples=40, deadline=None)
@given(masks, st.sampled_from(sorted(ROWS)))
def test_weights_agree_with_the_loops(mask, weights):
    expected = oracles.token_weights(ROWS[weights], mask)
    np.testing.assert_allclose(token_weights(ROWS[weights], mask), expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(1, 2), (3, 4)]), st.integers(1, 2))
def test_law_15_means_coincide_at_equal_lengths(shape, length):
    mask = np.zeros(shape, bool)
    mask[:, :length] = True
    token_mean = np.asarray(token_weights(ROWS["token_mean"], mask))
    for other, factor in (("sequence_mean", 1), ("sequence_sum", 1 / length)):
        got = np.asarray(token_weights(ROWS[other], mask)) * factor
        np.testing.assert_allclose(got, token_mean, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(masks.filter(lambda mask: mask.shape[0] > 1), st.data())
def test_law_14_dropping_a_row_only_changes_the_common_denominator(mask, data):
    """The weights of the other rows keep their proportions."""
    kept = mask.copy()
    kept[data.draw(st.integers(0, mask.shape[0] - 1))] = False
    for m in ROWS.values():
        before = np.where(kept, token_weights(m, mask), 0.0)
        after = np.asarray(token_weights(m, kept))
        if kept.any():
            np.testing.assert_allclose(before / before.sum(), after / after.sum(), rtol=1e-5)
