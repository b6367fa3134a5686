import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.evaluate import bootstrap_interval, evaluation_report, majority_accuracy, pass_at_k
from jgrpo.metrics import plain_metrics


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(row: list[bool], data):
    k = data.draw(st.integers(1, len(row)))
    subsets = [any(subset) for subset in itertools.combinations(row, k)]
    (estimate,) = pass_at_k(np.array([row]), k)
    assert estimate == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_pass_at_k_worked_by_hand():
    """n=4, k=2: c=0 gives 0, c=1 gives 1 - 3/6, c=3 gives 1 - 0/6."""
    correct = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 1]], bool)
    np.testing.assert_allclose(pass_at_k(correct, 2), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(pass_at_k(correct, 1), correct.mean(axis=1))


def test_pass_at_k_of_many_samples_does_not_overflow():
    """c=1 of n: 1 - (n-1 choose k)/(n choose k) = k/n, here 1000/2000."""
    correct = np.zeros((1, 2000), bool)
    correct[0, 3] = True
    np.testing.assert_allclose(pass_at_k(correct, 1000), [0.5], rtol=1e-9)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_k_outside_the_samples(k: int):
    with pytest.raises(ValueError, match=rf"k must be in 1\.\.4 .* got {k}"):
        pass_at_k(np.zeros((1, 4), bool), k)


def test_majority_worked_by_hand():
    """A clear win; a clear loss; a tie of two; no answers at all; silence does not vote."""
    answers = [
        ["7", "3", "7"],
        ["3", "3", "7"],
        ["3", "7", None],
        [None, None, None],
        [None, None, "7"],
    ]
    np.testing.assert_array_equal(majority_accuracy(answers, ["7"] * 5), [1, 0, 0.5, 0, 1])


def test_majority_refuses_missing_references():
    with pytest.raises(ValueError, match="2 rows of answers but 1 references"):
        majority_accuracy([["1"], ["2"]], ["1"])


def test_interval_is_deterministic_and_depends_on_the_seed():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, 1) == bootstrap_interval(values, 1)
    assert bootstrap_interval(values, 1) != bootstrap_interval(values, 2)


@settings(max_examples=10)
@given(st.integers(30, 200), st.floats(0.2, 0.8), st.integers(0, 9))
def test_interval_is_near_the_normal_one(num_prompts: int, rate: float, seed: int):
    values = (np.arange(num_prompts) < rate * num_prompts).astype(np.float64)
    low, high = bootstrap_interval(values, seed)
    half = 1.96 * values.std() / np.sqrt(num_prompts)
    assert low == pytest.approx(values.mean() - half, abs=0.04)
    assert high == pytest.approx(values.mean() + half, abs=0.04)


def test_interval_of_equal_values_is_a_point():
    assert bootstrap_interval(np.ones(5), 0) == (1.0, 1.0)


def test_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval(np.zeros(0), 0)


def _report(**changes):
    facts = {
        "greedy_correct": np.array([True, False, True, True]),
        "greedy_length": np.array([3, 5, 7, 9]),
        "greedy_finished": np.array([True, True, False, True]),
        "seed": 0,
    }
    return evaluation_report(**(facts | changes))


def test_greedy_report_worked_by_hand():
    report = _report(greedy_format=np.array([True, True, False, False]))
    assert (report.greedy_accuracy, report.length_mean) == (0.75, 6.0)
    assert (report.finished_rate, report.format_rate) == (0.75, 0.5)
    assert report.greedy_interval[0] < 0.75 < report.greedy_interval[1]
    assert not report.pass_at
    assert not report.maj_at


def test_sampled_report_has_powers_of_two_and_the_whole():
    correct = np.array([[1, 1, 0, 0, 0, 0]] * 4, bool)
    answers = [["7", "7", "1", "2", "3", "4"]] * 4
    report = _report(sampled_correct=correct, sampled_answers=answers, references=["7"] * 4)
    assert list(report.pass_at) == [1, 2, 4, 6]
    np.testing.assert_allclose(list(report.pass_at.values()), [2 / 6, 1 - 6 / 15, 1 - 1 / 15, 1])
    assert dict(report.maj_at) == {6: 1.0}


def test_report_is_json_and_its_metrics_are_listed():
    correct = np.array([[True, False]] * 4)
    answers = [["7", "1"]] * 4
    report = _report(sampled_correct=correct, sampled_answers=answers, references=["7"] * 4)
    row = json.loads(json.dumps(report.to_json()))
    assert row["greedy_accuracy"] == 0.75
    assert row["greedy_interval"] == list(report.greedy_interval)
    assert row["pass_at"] == {"1": 0.5, "2": 1.0}
    assert row["format_rate"] is None
    names = plain_metrics(report.metrics())
    assert {"eval/pass@2_low", "eval/maj@2", "eval/greedy_accuracy_high"} <= names.keys()
    assert "eval/format_rate" not in names


def test_report_of_no_prompts_is_refused():
    none = np.zeros(0, bool)
    with pytest.raises(ValueError, match="at least one held-out prompt"):
        _report(greedy_correct=none, greedy_length=np.zeros(0, int), greedy_finished=none)


def test_answers_without_references_are_refused():
    with pytest.raises(ValueError, match="without references"):
        _report(sampled_correct=np.ones((4, 1), bool), sampled_answers=[["7"]] * 4)
