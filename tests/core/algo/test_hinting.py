"""Hints that another policy writes: what they are paid, which is chosen, what may be used."""

import numpy as np
import pytest

from jgrpo import algo
from jgrpo.algo.hinting import (
    Gate,
    gate,
    hill_base,
    hill_hint_reward,
    hill_select,
    hint_of,
    leaks,
)
from jgrpo.algo.rounds import uniform
from jgrpo.config import ContextConfig
from jgrpo.roles import role_method, written
from jgrpo.types import Prompts, Rollouts

HILL = algo.METHODS["hill"]
FORM = ContextConfig().hint_form
NONE = np.zeros(1)  # base of a prompt that is never solved


def rows(*right: int, n: int = 8) -> np.ndarray:
    """One prompt's rewards under hints that so many completions solve, the last ones."""
    return np.array([[[0.0] * (n - k) + [1.0] * k for k in right]])


def test_worked_example():
    """Of n = 8: 1 right, D = -.1; 4 right, D = -.45; all right; a leak: the first is chosen."""
    rewards, reliance = rows(1, 4, 8, 4), np.full((1, 4, 8), 9.0)
    for hint, value in enumerate((-0.1, -0.45, -0.1, -0.1)):
        reliance[0, hint][rewards[0, hint] > 0] = value  # of wrong ones it does not matter
    opened = np.array([[True, True, True, False]])
    paid = hill_hint_reward(HILL, rewards, reliance, opened, NONE)
    np.testing.assert_allclose(paid.base, [[0.6564, 0.9922, 0, 0]], atol=5e-5)
    np.testing.assert_allclose(paid.rewards, [[0.4703, 0.2214, 0, -0.2]], atol=5e-5)
    assert hill_select(paid).tolist() == [0]


def test_reliance_is_a_mean_over_right_ones_and_help_that_stays_costs_nothing():
    rewards = rows(2, 2, n=4)
    reliance = np.array([[[5.0, 5, -0.1, -0.5], [-5.0, -5, 0.4, -0.2]]])
    paid = hill_hint_reward(HILL, rewards, reliance, np.ones((1, 2), bool), NONE)
    np.testing.assert_allclose(paid.rewards, [[0.875 * np.exp(-1), 0.875]], rtol=1e-12)
    assert hill_select(paid).tolist() == [1]


def test_a_hint_must_do_better_than_none_but_a_fault_stays_a_fault():
    """Base .875 of two in four; of one in four it is .6797."""
    rewards, still = rows(1, 2, 2, n=4), np.zeros((1, 3, 4))
    opened, before = np.array([[True, True, False]]), np.array([1 - 0.25**4 - 0.75**4])
    paid = hill_hint_reward(HILL, rewards, still, opened, before)
    np.testing.assert_allclose(paid.rewards, [[0, 0.875, -0.2]])


def test_ties_go_to_the_first_and_hopeless_prompts_to_nobody():
    opened = np.ones((1, 3), bool)
    same = hill_hint_reward(HILL, rows(0, 3, 3), np.zeros((1, 3, 8)), opened, NONE)
    assert hill_select(same).tolist() == [1]
    # So much reliance that nothing is left of the reward is still better than no right completion.
    leaning = hill_hint_reward(HILL, rows(0, 8, 3), np.full((1, 3, 8), -1e4), opened, NONE)
    assert leaning.rewards.tolist() == [[0, 0, 0]]
    assert hill_select(leaning).tolist() == [2]
    for right, usable in (((0, 8, 0), True), ((3, 3, 3), False)):
        paid = hill_hint_reward(HILL, rows(*right), np.zeros((1, 3, 8)), opened & usable, NONE)
        assert hill_select(paid).tolist() == [-1]


def test_completions_without_a_score_count_for_nothing():
    rewards = rows(2, 2, n=4)
    rewards[0, 1, :2] = np.nan  # the wrong ones
    rewards = np.concatenate([rewards, np.full((1, 1, 4), np.nan)], axis=1)
    paid = hill_hint_reward(HILL, rewards, np.zeros((1, 3, 4)), np.ones((1, 3), bool), NONE)
    np.testing.assert_allclose(paid.base, [[0.875, 0, 0]])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_hint_is_paid_something_finite_and_their_order_does_not_matter(size):
    draw = np.random.default_rng(size)
    rewards = draw.choice([0.0, 1.0, np.nan], (64, 4, size))
    reliance, opened = draw.normal(size=(64, 4, size)), draw.random((64, 4)) < 0.7
    before = hill_base(draw.integers(0, 3, 64), np.full(64, 2))
    paid = hill_hint_reward(HILL, rewards, reliance, opened, before)
    assert np.isfinite(paid.rewards).all()
    assert ((paid.rewards == -0.2) == ~opened).all()
    assert (paid.rewards[opened] >= 0).all()
    assert (paid.rewards <= np.where(opened, paid.base, 0)).all()
    if size == 1:
        assert (paid.base == 0).all()
    order = draw.permutation(4)
    other = hill_hint_reward(HILL, rewards[:, order], reliance[:, order], opened[:, order], before)
    np.testing.assert_array_equal(other.rewards, paid.rewards[:, order])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("<analysis>no</analysis><hint>Square\nit.</hint> tail", "Square\nit."),
        ("<hint> first </hint><hint>second</hint>", "first"),
        ("<hint></hint>", ""),
        ("<hint>  \n</hint>", ""),
        ("<hint>never ends", ""),
        ("nothing", ""),
    ],
)
def test_a_hint_is_read_from_its_tags(text, hint):
    assert hint_of(FORM, text) == hint


@pytest.mark.parametrize(
    ("hint", "answer", "leak"),
    [
        *((f"So x {form} 7 now", "7", True) for form in ("=", "is", "equals", "IS", "is equal to")),
        ("Answer: 7", "7", True),
        (r"Write \boxed{7}.", "7", True),
        ("Take 7 apples, or 7=x", "7", False),
        ("The choice IS B", "b", True),
        ("there are 124 of them", "124", True),
        ("PARIS in spring", " Paris ", True),
        ("London", "Paris", False),
        ("anything", "", False),
    ],
)
def test_what_tells_the_answer(hint, answer, leak):
    assert leaks(hint, answer) is leak


def test_gates_in_their_order():
    assert gate("", "7", False) is Gate.UNPARSED
    assert gate("x = 7", "7", False) is Gate.LEAK
    assert gate("think", "7", False) is Gate.TOO_LONG
    assert gate("think", "7", True) is Gate.OPEN


def seen(plan, rewards, rounds=("first",), **further):
    given = np.asarray(rewards, float)
    given = np.pad(given, [(0, 0), (0, plan.places - given.shape[1])], constant_values=np.nan)
    there = ~np.isnan(given)
    facts = {"lengths": there * 5, "noise": np.full(there.shape, 0.6), "rewards": given}
    nothing = {"gates": np.zeros(there.shape, int), "reliance": np.zeros(there.shape)}
    return algo.Seen(
        rounds=rounds, step=0, steps=1, room=20, prompt_ids=np.arange(len(given)),
        drawn=there.sum(axis=1), **(facts | nothing | further),
    )  # fmt: skip


def test_rounds_of_an_unsolved_prompt():
    """Two prompts of three, two hints: places 3 and 4 are the hinter's, 5-7 and 8-10 theirs."""
    nan = np.nan
    plan = algo.plan(algo.method("hill", hints=2), 3, 2)
    assert (plan.places, plan.kept, dict(plan.roles)) == (11, 3, {"hinter": range(3, 5)})
    # Of the two failures that have a score the second is shown: floor(.6 * 2) = 1.
    first = [[0.0, nan, 0.4], [0.0, 1.0, 0.0]]
    asked = plan.wants(seen(plan, first))
    assert asked.role == "hinter"
    (want,) = asked.wants
    assert (want.prompt, want.first, want.count, want.context, want.of) == (0, 3, 2, "hinter", 2)
    gates = np.zeros((2, 11), int)
    gates[0, 3:5] = Gate.LEAK, Gate.OPEN
    hinted = plan.wants(seen(plan, first, ("first", "hinter"), gates=gates))
    assert hinted.role == ""
    (want,) = hinted.wants
    assert (want.prompt, want.first, want.count, want.said, want.of) == (0, 8, 3, 4, 2)
    assert (want.context, want.kept, want.ratio) == ("hinted", True, algo.Ratio.SAME)
    after = [[*first[0], *[nan] * 5, 1, 0, 0], [*first[1], *[nan] * 8]]
    reliance = np.zeros((2, 11))
    reliance[0, 8] = -0.3
    rounds = ("first", "hinter", "hinted")
    over = seen(plan, after, rounds, gates=gates, reliance=reliance)
    assert plan.wants(over) is None
    finished = plan.finish(over)
    assert finished.place.tolist() == [[8, 9, 10], [0, 1, 2]]
    base = 1 - 1 / 27 - 8 / 27
    np.testing.assert_allclose(
        finished.rewards["hinter"], [[-0.2, base * np.exp(-1)], [nan, nan]], rtol=1e-12
    )
    assert finished.metrics == pytest.approx({
        "hint/valid_fraction": 0.5, "hint/leak_fraction": 0.5, "hint/reliance_mean": -0.3,
        "hint/reward_mean": (base * np.exp(-1) - 0.2) / 2,
    })  # fmt: skip


def test_without_an_open_gate_nobody_is_drawn_again():
    plan = algo.plan(HILL, 3, 1)
    shut = np.full((1, plan.places), int(Gate.UNPARSED))
    over = seen(plan, [[0.0] * 3], ("first", "hinter"), gates=shut)
    assert plan.wants(over) is None
    assert plan.finish(over).place.tolist() == [[0, 1, 2]]
    assert plan.finish(over).rewards["hinter"].tolist() == [[-0.2] * 4]


def test_where_no_prompt_counts_as_unsolved_the_plan_is_that_of_grpo():
    plan, alone = algo.plan(algo.method("hill", unsolved_at=-1.0), 3, 2), uniform(3)
    first = seen(plan, np.zeros((2, 3)))
    assert plan.wants(first) is None
    assert plan.finish(first).place.tolist() == alone.finish(first).place.tolist()
    assert np.isnan(plan.finish(first).rewards["hinter"]).all()


def test_hints_are_compared_within_their_prompt():
    """z-scores of .47, .22, 0, -.2 (mean .1229, deviation .2858); nothing without a hint."""
    rewards = np.array([[0.4703, 0.2214, 0, -0.2], [np.nan] * 4])
    prompts = Prompts(uid=np.arange(2), tokens=np.zeros((2, 1), int), mask=np.ones((2, 1), bool))
    drawn = Rollouts(
        prompts=prompts, tokens=np.zeros((2, 4, 1), int), mask=np.ones((2, 4, 1), bool),
        behavior_logp=np.zeros((2, 4, 1), np.float32), finished=np.ones((2, 4), bool),
    )  # fmt: skip
    this = written(HILL, drawn, [""] * 8, rewards)
    expected = (rewards[0] - rewards[0].mean()) / rewards[0].std(ddof=1)
    np.testing.assert_allclose(this.advantages, [expected, [0] * 4], rtol=1e-4)
    assert this.there.tolist() == [[True] * 4, [False] * 4]


def test_a_role_learns_by_grpo_with_the_clips_of_the_method():
    m = role_method(HILL)
    assert (m.weights, m.clip_low, m.clip_high, m.penalty, m.plan) == (
        *("token_mean", 0.2, 0.28, "none", "uniform"),
    )
