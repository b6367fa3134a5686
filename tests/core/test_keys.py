"""Keys follow from names and numbers alone."""

import jax
import numpy as np
import pytest

from jgrpo.buckets import bucket
from jgrpo.keys import named_key, root_key, sequence_keys

ROOT = root_key(5)


def data(key):
    return np.asarray(jax.random.key_data(key))


def distinct(keys):
    rows = data(keys).reshape(-1, data(ROOT).size)
    return len(np.unique(rows, axis=0)) == len(rows)


def test_same_path_gives_same_key():
    assert (data(named_key(root_key(5), 3, "rollout")) == data(named_key(ROOT, 3, "rollout"))).all()


def test_path_folds_part_by_part():
    whole = named_key(ROOT, 3, "rollout", 1)
    assert (data(whole) == data(named_key(named_key(ROOT, 3), "rollout", 1))).all()


def test_seed_step_and_name_each_change_the_key():
    paths = [(step, *names) for step in (0, 1) for names in ((), ("rollout",), ("eval",))]
    paths += [("rollout", 0), (0, "rollout", 0), (0, 0)]
    keys = [named_key(root_key(seed), *path) for seed in (5, 6) for path in paths]
    assert distinct(jax.numpy.stack(keys))


def test_uid_member_and_rollout_each_change_a_completions_key():
    uid = np.array([0, 1, 2, 1000])
    both = [sequence_keys(named_key(ROOT, step), uid, 3) for step in (0, 1)]
    assert distinct(jax.numpy.stack(both))


@pytest.mark.parametrize("rows", [[3, 1, 0, 2], [2], [1, 1, 3]])
def test_completions_key_does_not_depend_on_row_order_or_company(rows):
    uid = np.array([4, 9, 2, 30])
    everything = data(sequence_keys(ROOT, uid, 3))
    assert (data(sequence_keys(ROOT, uid[rows], 3)) == everything[rows]).all()


def test_first_members_of_a_larger_group_have_the_keys_of_a_smaller_one():
    uid = np.array([4, 9])
    assert (data(sequence_keys(ROOT, uid, 5))[:, :2] == data(sequence_keys(ROOT, uid, 2))).all()


@pytest.mark.parametrize("step", [1, 3, 16])
def test_bucket_is_the_narrowest_listed_width_that_holds_the_length(step):
    widths = [step * n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)]
    for length in range(32 * step + 1):
        assert bucket(length, step) == min(w for w in widths if w >= length)
