"""How many completions each prompt gets: worked examples A4, A5, A6, and the exact optimum."""

import itertools

import numpy as np
import pytest

from jgrpo.algo import METHODS, Estimates, allocation, method

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
