"""The prompt order: every example once an epoch, from any cursor."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.data.order import prompt_ids


@settings(deadline=None, max_examples=10)
@given(n=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_each_epoch_visits_each_example_once(n, seed):
    order = prompt_ids(n, seed, 0, 3 * n, True)
    for epoch in order.reshape(3, n):
        assert sorted(epoch) == list(range(n))


@settings(deadline=None, max_examples=10)
@given(n=st.integers(1, 50), cursor=st.integers(0, 100), count=st.integers(0, 20))
def test_order_from_a_cursor_is_the_rest_of_the_order(n, cursor, count):
    whole = prompt_ids(n, 7, 0, cursor + count, True)
    np.testing.assert_array_equal(prompt_ids(n, 7, cursor, count, True), whole[cursor:])


def test_epochs_and_seeds_differ():
    order = prompt_ids(100, 0, 0, 200, True)
    assert (order[:100] != order[100:]).any()
    assert (order != prompt_ids(100, 1, 0, 200, True)).any()


def test_without_shuffling_the_order_is_that_of_the_source():
    np.testing.assert_array_equal(prompt_ids(3, 0, 2, 4, False), [2, 0, 1, 2])


def test_large_source_is_not_listed():
    order = prompt_ids(2**40, 0, 5, 4, True)
    assert len(set(order.tolist())) == 4


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="num_examples must be at least 1"):
        prompt_ids(0, 0, 0, 1, True)
