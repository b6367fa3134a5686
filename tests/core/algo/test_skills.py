"""The library of skills: who is chosen, what is paid, what stays; against loops and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo import algo
from jgrpo.algo.shaping import SHAPES
from jgrpo.algo.skills import (
    Library,
    Skill,
    arise_ema,
    arise_library,
    arise_reward,
    arise_rs,
    arise_select,
)

ARISE = algo.METHODS["arise"]
SCORES = np.array([[-1.0, -2.0, -2.5]])


def skill(name, utility, count=0):
    return Skill(name=name, text=f'{{"skill_name":"{name}"}}', utility=utility, count=count)


def shown(skills):
    return {one.name: round(one.utility, 6) for one in skills}


def noise(prompts=1, explore=0.99, where=0.0):
    return np.tile([explore, where], (prompts, 1))


def test_worked_example_of_the_choice():
    """The softmax is .629, .231, .140: the first is above .35."""
    assert arise_select(ARISE, SCORES, noise()).tolist() == [0]
    for confidence, choice in ((0.6285, 0), (0.6286, -1)):
        m = algo.method("arise", skill_confidence=confidence)
        assert arise_select(m, SCORES, noise()).tolist() == [choice]


def test_ties_go_to_the_first_and_ten_alike_to_none():
    assert arise_select(ARISE, np.array([[-3.0, -1, -1]]), noise()).tolist() == [1]
    assert arise_select(ARISE, np.full((1, 2), -7.0), noise()).tolist() == [0]
    assert arise_select(ARISE, np.full((1, 10), -7.0), noise()).tolist() == [-1]
    assert arise_select(ARISE, np.zeros((3, 0)), noise(3)).tolist() == [-1, -1, -1]


def test_exploring_takes_any_skill_but_does_not_open_the_gate():
    where = np.array([0.0, 0.34, 0.99])
    drawn = np.stack([np.full(3, 0.09), where], axis=1)
    assert arise_select(ARISE, np.tile(SCORES, (3, 1)), drawn).tolist() == [0, 1, 2]
    assert arise_select(ARISE, np.full((3, 10), -1.0), drawn).tolist() == [-1, -1, -1]
    drawn[:, 0] = 0.1  # the chance is strict
    assert arise_select(ARISE, np.tile(SCORES, (3, 1)), drawn).tolist() == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_choice_is_that_of_a_loop(data):
    prompts, skills = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 11))
    number = st.floats(-50, 0)
    scores = np.array([[data.draw(number) for _ in range(skills)] for _ in range(prompts)])
    unit = st.floats(0, 1, exclude_max=True)
    drawn = np.array([[data.draw(unit), data.draw(unit)] for _ in range(prompts)])
    expected = []
    for row, (explore, where) in zip(scores, drawn, strict=True):
        p = [np.exp(s - max(row)) for s in row]
        best = max(p) / sum(p)
        if abs(best - 0.35) < 1e-9:
            return
        choice = int(where * skills) if explore < 0.1 else list(row).index(max(row))
        expected.append(choice if best >= 0.35 else -1)
    assert arise_select(ARISE, scores, drawn).tolist() == expected


def test_the_bonus_is_for_right_completions_with_a_skill_after_the_first_phase():
    rewards = jnp.array([[0, 1, 0, 1], [0, 1, 0.5, 1]], jnp.float32)
    used = np.array([[True] * 4, [False] * 4])
    for step, expected in ((499, [[0, 1, 0, 1]]), (500, [[0, 2, 0, 2]]), (501, [[0, 2, 0, 2]])):
        paid = arise_reward(ARISE, rewards, used, np.array(step))
        np.testing.assert_array_equal(paid, [*expected, [0, 1, 0.5, 1]])
        side = algo.Side(skilled=used, step=np.array(step))
        np.testing.assert_array_equal(SHAPES["skill_bonus"].function(ARISE, rewards, side), paid)


def test_a_group_that_shares_its_skill_has_the_same_advantages_with_the_bonus():
    """What the pitfall of the shape says: the deviation takes the bonus out again."""
    rewards, used = np.array([[0, 1, 0, 1.0]], np.float32), np.ones((1, 4), bool)
    sides = [algo.Side(skilled=used, step=np.array(step), valid=used) for step in (500, 0)]
    with_it, without = (algo.advantages(ARISE, rewards, side).values for side in sides)
    np.testing.assert_allclose(with_it, without, rtol=1e-5)


def test_initial_utilities_and_the_moving_mean():
    cases = ((True, False, -1), (False, False, 0), (True, True, 0.5), (False, True, 1))
    for unaided, right, utility in cases:
        assert arise_rs(unaided, right) == utility
    assert arise_ema(0.5, 2.0) == pytest.approx(0.65)


def test_worked_example_of_the_library():
    """Cap 2; a pays 2, n comes with .5: b makes room and is not better than n."""
    m = algo.method("arise", skill_cache=2)
    before = Library((skill("a", 0.8), skill("b", 0.3)), (skill("x", 0.4),))
    after = arise_library(m, before, {"a": [2.0]}, skill("n", 0.5))
    assert shown(after.cache) == {"a": 0.92, "n": 0.5}
    assert shown(after.reservoir) == {"x": 0.4, "b": 0.3}
    assert [one.count for one in after.cache] == [1, 0]


def test_several_groups_update_a_skill_once_and_all_count():
    before = Library((skill("a", 1.0, count=4),))
    (after,) = arise_library(ARISE, before, {"a": [0.0, 2.0, 1.0, 1.0]}, None).cache
    assert (after.utility, after.count) == (pytest.approx(1.0), 8)


def test_a_known_name_adds_nothing():
    before = Library((skill("a", 0.5),), (skill("x", 0.1),))
    for name in ("a", "x"):
        assert arise_library(ARISE, before, {}, skill(name, 1.0)) == before


def test_the_reservoir_gives_back_what_is_strictly_better():
    m = algo.method("arise", skill_cache=2)
    cache = (skill("a", 0.8), skill("b", 0.3))
    for utility, expected in ((0.3, {"a", "b"}), (0.31, {"a", "x"})):
        after = arise_library(m, Library(cache, (skill("x", utility),)), {}, None)
        assert set(shown(after.cache)) == expected
        assert after.names == {"a", "b", "x"}
    # What has just been evicted does not come back, and a bad newcomer goes straight behind.
    after = arise_library(m, Library(cache), {}, skill("n", -1.0))
    assert (set(shown(after.cache)), set(shown(after.reservoir))) == ({"a", "b"}, {"n"})


def test_fewer_than_twenty_are_never_below_the_quantile():
    """The index of the quantile is 0 up to n = 19, 1 up to 29, 2 at 30; the rule is strict."""
    for number, gone in ((1, 0), (10, 0), (19, 0), (20, 1), (29, 1), (30, 2)):
        reservoir = tuple(skill(f"s{i}", i / 100) for i in range(number))
        after = arise_library(ARISE, Library((skill("a", 9.0),), reservoir), {}, None)
        assert [one.name for one in after.reservoir] == [f"s{i}" for i in range(gone, number)]
    used = (skill("s0", 0.0, count=1), *(skill(f"s{i}", i / 100) for i in range(1, 20)))
    assert arise_library(ARISE, Library((skill("a", 9.0),), used), {}, None).reservoir == used
    alike = tuple(skill(f"s{i}", 0.5) for i in range(40))
    assert arise_library(ARISE, Library((skill("a", 9.0),), alike), {}, None).reservoir == alike


def test_the_reservoir_loses_its_lowest_when_it_is_full():
    m = algo.method("arise", skill_reservoir=3)
    reservoir = tuple(skill(f"s{i}", u, count=1) for i, u in enumerate((0.2, 0.1, 0.4, 0.3, 0.1)))
    after = arise_library(m, Library((skill("a", 9.0),), reservoir), {}, None)
    assert [one.name for one in after.reservoir] == ["s0", "s2", "s3"]
    none = algo.method("arise", skill_reservoir=0)
    assert arise_library(none, Library((skill("a", 9.0),), reservoir), {}, None).reservoir == ()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_holds_of_every_library(data):
    """Sizes are kept, names unique, utilities finite; only the reservoir loses. For 30 steps."""
    number = st.floats(-2, 3)
    m = algo.method(
        "arise",
        skill_cache=data.draw(st.integers(1, 4)),
        skill_reservoir=data.draw(st.integers(0, 25)),
    )
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    library = Library()
    for _ in range(30):
        new = skill(f"s{draw.integers(40)}", data.draw(number)) if draw.random() < 0.9 else None
        paid = {s.name: [data.draw(number)] for s in library.cache if draw.random() < 0.4}
        after = arise_library(m, library, paid, new)
        assert len(after.cache) <= m.skill_cache
        assert len(after.reservoir) <= m.skill_reservoir
        everybody = [*after.cache, *after.reservoir]
        assert len(after.names) == len(everybody)
        assert np.isfinite([s.utility for s in everybody]).all()
        offered = library.names | ({new.name} if new else set())
        assert after.names <= offered
        assert len(after.cache) == min(m.skill_cache, len(offered))
        lost, kept = offered - after.names, [s.utility for s in after.reservoir]
        before = {s.name: s for s in (*library.cache, *library.reservoir, *([new] if new else []))}
        for name in lost:  # they were the worst of the reservoir, or there was no room
            assert len(kept) == m.skill_reservoir or before[name].count == 0
        library = after


def test_the_plan_asks_every_group_under_its_skill():
    plan, zeros = algo.plan(ARISE, 4, 3), np.zeros((3, 4))
    seen = algo.Seen(
        rounds=(), step=0, steps=9, room=9, prompt_ids=np.arange(3), drawn=np.zeros(3, int),
        noise=zeros, lengths=zeros.astype(int), skills=np.array([2, 0, 1]),
    )  # fmt: skip
    wants = plan.wants(seen).wants
    assert [(w.prompt, w.first, w.count) for w in wants] == [(0, 0, 4), (1, 0, 4), (2, 0, 4)]
    assert [(w.context, w.of) for w in wants] == [("skill", 2), ("", 0), ("skill", 1)]
    assert all(w.kept and w.ratio == algo.Ratio.SAME for w in wants)  # trained as it was drawn
