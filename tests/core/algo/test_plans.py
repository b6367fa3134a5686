"""Guidance: the worked examples of the specification, and what the schedules may not do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo import algo
from jgrpo.algo.plans import Guidance, next_guidance
from jgrpo.strategy import guidance

ACCURACIES = [0.40, 0.50, 0.30, 0.30, 0.40, 0.70]


def lengths(m, accuracies, steps=100):
    """The tokens used in each step, and those of the step after the last."""
    now, used = Guidance(tokens=m.guidance_tokens), []
    for step, accuracy in enumerate(accuracies, start=1):
        used.append(now.tokens)
        now = next_guidance(m, now, accuracy, step, steps)
    return [*used, now.tokens]


def test_worked_example_of_the_adaptive_rule():
    m = algo.method("g2rpo_a", guidance_tokens=1000)
    assert lengths(m, ACCURACIES) == [1000, 1000, 1000, 1500, 1500, 1500, 750]


def test_products_are_truncated_as_the_released_code_truncates_them():
    m = algo.method("g2rpo_a", guidance_tokens=1024)
    assert lengths(m, [0.3, 0.3, 0.1])[-1] == 3071  # 1024 * (.3 / .1) is 3071.9999999999995


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.0, 0.0, 0.5], 100),  # no mean to compare with
        ([0.5, 0.5, 0.0], 100),  # nothing to divide by
        ([0.5, 0.5, 0.5], 100),
        ([0.9, 0.9, 0.01], 3072),  # as long as it may be
        ([0.001, 0.001, 1.0], 1),  # as short as it may be
    ],
)
def test_edges_of_the_adaptive_rule(accuracies, expected):
    m = algo.method("g2rpo_a", guidance_tokens=100)
    assert lengths(m, accuracies)[-1] == expected


def test_worked_example_of_the_linear_decay():
    m = algo.method("g2rpo_a", guidance="linear")
    found = lengths(m, [0.5] * 100, steps=101)
    assert [found[i - 1] for i in (1, 26, 51, 101)] == [3072, 2304, 1536, 0]


def test_constant_guidance_stays():
    m = algo.method("g2rpo_a", guidance="constant", guidance_tokens=7)
    assert set(lengths(m, ACCURACIES)) == {7}


def test_the_first_completions_are_guided_by_what_the_solution_has():
    m = algo.method("g2rpo_a", guided_rows=2)
    assert wanted(m) == [(0, 0, 2, 5), (0, 2, 2, 0), (1, 0, 2, 3), (1, 2, 2, 0), (2, 0, 4, 0)]
    none = algo.method("g2rpo_a", guided_rows=0)
    assert wanted(none) == [(0, 0, 4, 0), (1, 0, 4, 0), (2, 0, 4, 0)]


def wanted(m):
    """Prompt, first place, number and tokens of each beginning; solutions of 9, 3 and 0 tokens."""
    zeros = np.zeros((3, 4), np.int64)
    seen = algo.Seen(
        rounds=(), step=0, steps=1, room=9, prompt_ids=np.arange(3), drawn=zeros[:, 0],
        noise=zeros * 0.0, lengths=zeros, solutions=np.array([9, 3, 0]), guidance=5,
    )  # fmt: skip
    found = algo.plan(m, 4, 3).wants(seen)
    return [(want.prompt, want.first, want.count, want.tokens) for want in found.wants]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(1, 64)), min_size=1, max_size=12),
    st.integers(0, 3),
    st.sampled_from(["adaptive", "linear", "constant"]),
)
def test_the_memory_of_a_run_is_exact(seen, start, schedule):
    """Counts in int32 arrays, restored between any two steps, give what unbroken floats give."""
    m = algo.method("g2rpo_a", guidance=schedule, guidance_tokens=100 * start)
    counts = [(min(correct, size), size) for correct, size in seen]
    state, used = guidance.fresh(m), []
    for step, (correct, size) in enumerate(counts, start=1):
        used.append(guidance.tokens_of(state))
        state = guidance.observed(m, state, correct, size, step, 20)
        assert all(np.asarray(x).dtype == np.int32 for x in state.values())
    expected = lengths(m, [correct / size for correct, size in counts], steps=20)
    assert [*used, guidance.tokens_of(state)] == expected
