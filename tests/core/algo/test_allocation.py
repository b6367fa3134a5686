"""How many completions each prompt gets: worked examples A4, A5, A6, and the exact optimum."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jgrpo.algo import METHODS, Estimates, allocation, init_state, method, tracked_estimates
from jgrpo.algo.allocation import student_quantile
from jgrpo.algo.trackers import BetaTracker, SuccessRates

RATES = Estimates(success=np.array([0.1, 0.5, 0.9]))


def knapsack_value(p, n):
    return p * (1 - p) ** 2 * (1 - p**n - (1 - p) ** n)


def v0_value(p, n):
    return n * (1 - p) * (1 - (1 - p) ** (n - 1))


def best(value, rates, budget, low, high):
    """Every allocation there is."""
    every = itertools.product(range(low, high + 1), repeat=len(rates))
    return max(
        sum(value(p, n) for p, n in zip(rates, counts, strict=True))
        for counts in every
        if sum(counts) == budget
    )


def test_worked_example_of_the_knapsack():
    m = method("knapsack", rollouts_max=16)
    counts = allocation(m, RATES, 24)
    assert counts.tolist() == [15, 7, 2]
    assert RATES.success is not None
    total = sum(knapsack_value(p, n) for p, n in zip(RATES.success, counts, strict=True))
    np.testing.assert_allclose(total, 0.188990, atol=6e-7)


def test_greedy_knapsack_is_the_optimum():
    rates = np.array([0.05, 0.3, 0.7])
    m = method("knapsack", rollouts_min=1, rollouts_max=8)
    counts = allocation(m, Estimates(success=rates), 13)
    total = sum(knapsack_value(p, n) for p, n in zip(rates, counts, strict=True))
    np.testing.assert_allclose(total, best(knapsack_value, rates, 13, 1, 8), rtol=1e-12)


def test_knapsack_leaves_solved_prompts_the_least_and_unsolved_ones_the_rest():
    m = method("knapsack", rollouts_max=6)
    counts = allocation(m, Estimates(success=np.array([0.0, 1.0, 0.5, 0.0])), 20)
    assert counts.tolist() == [6, 2, 6, 6]
    unknown = allocation(m, Estimates(success=np.array([np.nan, 0.5, 1.0])), 12)
    assert unknown.tolist() == [4, 6, 2]


def test_trap_10_greedy_is_not_optimal_for_v0_and_the_exact_rule_is():
    greedy = allocation(METHODS["v0"], RATES, 12)
    exact = allocation(method("v0", allocate="v0_exact"), RATES, 12)
    assert greedy.tolist() == [2, 8, 2]
    assert exact.tolist() == [8, 2, 2]
    rates = np.array([0.1, 0.2, 0.6])
    m = method("v0", allocate="v0_exact", rollouts_max=9)
    counts = allocation(m, Estimates(success=rates), 15)
    total = sum(v0_value(p, n) for p, n in zip(rates, counts, strict=True))
    np.testing.assert_allclose(total, best(v0_value, rates, 15, 2, 9), rtol=1e-12)


def test_sequential_sampling_stops_where_one_more_saves_too_little():
    """A6: after 1, 1, -1, 1 with prior -0.4 go on; with a prior at the mean stop at once."""
    estimates = Estimates(
        success=None,
        sampled=np.array([4, 4, 16, 2]),
        mean=np.array([0.5, 0.5, 0.5, 0.5]),
        prior=np.array([-0.4, 0.5, -0.4, -0.4]),
    )
    assert allocation(METHODS["v0_5"], estimates, 100).tolist() == [1, 0, 0, 2]
    assert allocation(METHODS["v0_5"], estimates, 2).tolist() == [1, 0, 0, 1]


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"estimates\.success"):
        allocation(METHODS["v0"], Estimates(prior=np.zeros(2)), 8)
    with pytest.raises(ValueError, match="rollouts_min = 2"):
        allocation(METHODS["v0"], RATES, 5)
    with pytest.raises(ValueError, match=r"estimates\.sampled, mean and prior"):
        allocation(METHODS["v0_5"], RATES, 5)


def test_uniform_allocation_spreads_the_remainder():
    assert allocation(METHODS["grpo"], RATES, 8).tolist() == [3, 3, 2]


def test_one_shot_rules_spend_the_budget_whole_and_keep_their_bounds():
    draw = np.random.default_rng(0)
    for rule in ("knapsack", "v0", "v0_exact"):
        m = method("knapsack", allocate=rule, rollouts_max=9)
        for _ in range(20):
            size, number = int(draw.integers(2, 6)), int(draw.integers(1, 6))
            rates = draw.choice([0.0, 1.0, 0.3, 0.8, np.nan], number)
            counts = allocation(m, Estimates(success=rates), number * size)
            assert counts.sum() == number * size, (rule, rates)
            assert counts.min() >= 2, (rule, rates)
            assert counts.max() <= 9, (rule, rates)
            assert (counts[np.isnan(rates)] == size).all(), (rule, rates)


def test_prior_that_is_not_known_counts_as_infinitely_far():
    """error(k) = s / k: at s = 1 one more saves 1 / 240 at 15, and 1 / 256 is the cost."""
    estimates = Estimates(sampled=np.array([4, 15, 16]), mean=np.zeros(3), prior=np.full(3, np.nan))
    assert allocation(METHODS["v0_5"], estimates, 9).tolist() == [1, 1, 0]
    dear = method("v0_5", rollout_cost=1 / 239)
    assert allocation(dear, estimates, 9).tolist() == [1, 0, 0]


@settings(max_examples=60, deadline=None)
@given(st.floats(0.5, 0.999), st.integers(1, 40))
def test_quantiles_of_student_are_scipys(probability, degrees):
    expected = stats.t.ppf(probability, degrees)
    np.testing.assert_allclose(
        student_quantile(probability, degrees), expected, rtol=1e-6, atol=1e-9
    )


def test_worked_example_of_uncertain_means():
    """A7: s = 0.5 and 0.3 after four: gains 0.174780 and 0.104868, bonus 0.072101 each."""
    four = np.array([4, 4])
    estimates = Estimates(sampled=four, deviation=np.array([0.5, 0.3]))
    h = lambda n, s: student_quantile(0.975, n - 1) * s / np.sqrt(n)  # noqa: E731
    np.testing.assert_allclose([h(4, 0.5), h(4, 0.3)], [0.795612, 0.477367], atol=6e-7)
    np.testing.assert_allclose(h(4, 0.5) - h(5, 0.5), 0.174780, atol=6e-7)
    np.testing.assert_allclose(h(4, 0.3) - h(5, 0.3), 0.104868, atol=6e-7)
    np.testing.assert_allclose(0.1 * np.sqrt(np.log(8) / 4), 0.072101, atol=6e-7)
    one = method("xrpo", allocation_phases=9)
    # Planned are 8 + 5 - 2 * 2 = 9 beyond the first two of each: one a phase.
    assert allocation(one, estimates, 5).tolist() == [1, 0]
    # Its interval narrows to gain 0.0962, less than the 0.1049 of the other.
    two = method("xrpo", allocation_phases=5)
    assert allocation(two, estimates, 5).tolist() == [1, 1]


def test_uncertain_means_are_asked_in_phases_within_the_bounds():
    m = method("xrpo", rollouts_max=5, allocation_phases=2)
    first = Estimates(sampled=np.zeros(3, int), deviation=np.zeros(3))
    assert allocation(m, first, 12).tolist() == [2, 2, 2]
    later = Estimates(sampled=np.full(3, 2), deviation=np.array([0.7, 0.0, 0.7]))
    # Half of the 6 that are planned; without deviation only the bonus speaks for a prompt.
    assert allocation(m, later, 6).tolist() == [2, 0, 1]
    full = Estimates(sampled=np.array([5, 4, 5]), deviation=np.ones(3))
    assert allocation(m, full, 6).tolist() == [0, 1, 0]


def test_estimates_come_from_the_tracker_and_the_rewards_so_far():
    m = method("knapsack", min_value=-1.0)
    state = SuccessRates(
        rate=np.array([0.5, -1, 0], np.float32), seen=np.array([True, True, False])
    )
    rewards = np.array([[1.0, 0.0, np.nan], [np.nan] * 3, [1.0, np.nan, np.nan]])
    found = tracked_estimates(m, state, np.array([2, 0, 1]), rewards=rewards)
    np.testing.assert_array_equal(found.prior, [np.nan, 0.5, -1])
    np.testing.assert_array_equal(found.success, [np.nan, 0.75, 0])
    assert (found.sampled.tolist(), found.mean.tolist()) == ([2, 0, 1], [0.5, 0, 1])
    np.testing.assert_allclose(found.deviation, [np.sqrt(0.5), 0, 0])
    beta = BetaTracker(alpha=np.array([1.0, 3], np.float32), beta=np.array([1.0, 1], np.float32))
    spo = method("spo", allocate="knapsack")
    assert tracked_estimates(spo, beta, np.array([1, 0])).success.tolist() == [0.75, 0.5]
    nothing = tracked_estimates(METHODS["xrpo"], {}, np.array([4]), sampled=np.array([3]))
    assert np.isnan(nothing.prior).all()
    assert nothing.sampled.tolist() == [3]
    with pytest.raises(ValueError, match="keeps state"):
        tracked_estimates(METHODS["v0"], {}, np.array([0]))
    assert np.isnan(tracked_estimates(METHODS["v0"], init_state(METHODS["v0"], num_prompts=1),
                                      np.array([0])).success).all()  # fmt: skip


def too_many(m, estimates, budget):
    return np.full(3, budget)


def test_a_rule_of_the_users_own_must_stay_within_the_budget():
    m = method("knapsack", allocate=f"{__name__}:too_many")
    with pytest.raises(ValueError, match=r"gave \[9, 9, 9\].* at most 9"):
        allocation(m, RATES, 9)
