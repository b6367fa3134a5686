"""Main agents that call a sub-agent: alignment, rewards, and the rounds of the plan."""

import numpy as np
import pytest

from jgrpo import algo
from jgrpo.algo.delegating import SUB, calls_of, mgrpo_align, mgrpo_reward_sub
from jgrpo.config import CallsConfig
from jgrpo.roles import role_method

M_GRPO = algo.METHODS["m_grpo"]
NAN = np.nan


def test_worked_example_of_alignment():
    """Two calls of four: copies of 1 and 0; five: the fourth is left out; none: no rows."""
    index = mgrpo_align(np.array([2, 5, 0]), 4, [[1, 0], [3], []])
    assert index.tolist() == [[0, 1, 1, 0], [0, 1, 2, 4], [-1] * 4]


@pytest.mark.parametrize("d", [1, 3, 8])
def test_all_calls_stay_or_as_many_as_there_is_room_for(d):
    draw = np.random.default_rng(d)
    counts = draw.integers(0, 12, 50)
    picks = [
        draw.permutation(n)[: n - d].tolist() if n > d else draw.integers(0, n or 1, d - n).tolist()
        for n in counts
    ]
    picks = [chosen if n else [] for n, chosen in zip(counts, picks, strict=True)]
    for n, chosen, row in zip(counts, picks, mgrpo_align(counts, d, picks), strict=True):
        if n == 0:
            assert row.tolist() == [-1] * d
        elif n <= d:
            assert sorted(row.tolist()) == sorted([*range(n), *chosen])
        else:
            assert row.tolist() == sorted(set(range(n)) - set(chosen))


@pytest.mark.parametrize(
    ("count", "picks", "message"),
    [
        (2, [0], "picks 0 must be 2 calls to copy of 2"),
        (2, [0, 2], "picks 0 must be 2 calls to copy of 2"),
        (0, [0], "picks 0 must be 0 calls to copy of 0"),
        (6, [0, 0], "picks 0 must be 2 different calls to leave out of 6"),
        (6, [0], "picks 0 must be 2 different calls to leave out of 6"),
    ],
)
def test_picks_that_do_not_fit_are_refused(count, picks, message):
    with pytest.raises(ValueError, match=message):
        mgrpo_align(np.array([count]), 4, [picks])


def test_worked_example_of_population_advantages():
    """Mean .6, population deviation .4899: .816 and -1.225."""
    rewards = np.array([[1.0, 0, 0, 1, 1]], np.float32)
    expected = [[0.816, -1.225, -1.225, 0.816, 0.816]]
    found = algo.advantages(role_method(M_GRPO), rewards).values
    np.testing.assert_allclose(found, expected, atol=5e-4)
    columns = np.stack([rewards, np.ones_like(rewards)], axis=-1)  # all of them in form
    found = algo.advantages(M_GRPO, columns).values
    np.testing.assert_allclose(found, expected, atol=5e-4)


def test_a_main_agent_is_paid_for_form_and_outcome_and_nothing_without_form():
    """Outcome, format: .1 + .9 o in form. Population deviation of 1, .1, 0, 0 is .4206."""
    columns = np.array([[[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]], np.float32)
    paid = np.array([1.0, 0.1, 0.0, 0.0])
    expected = (paid - 0.275) / np.sqrt(np.mean((paid - 0.275) ** 2))
    found = algo.advantages(M_GRPO, columns).values
    np.testing.assert_allclose(found, [expected], rtol=1e-4)
    with pytest.raises(ValueError, match="takes 2 reward columns"):
        algo.advantages(M_GRPO, columns[..., :1])


def test_a_sub_agent_is_paid_for_form_the_main_agents_outcome_and_an_experts_word():
    formed = np.array([True, True, True, False])
    right, expert = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.5, 0.0, NAN])
    paid = mgrpo_reward_sub(M_GRPO, formed, right, expert)
    np.testing.assert_allclose(paid, [1.0, 0.3, 0.6, 0.0])
    assert np.isnan(mgrpo_reward_sub(M_GRPO, formed[:1], right[:1], expert[3:])).all()


def test_both_learn_with_ratios_of_sequences_and_the_clips_of_gspo():
    role, gspo = role_method(M_GRPO), algo.METHODS["gspo"]
    for field in ("level", "trust", "weights", "clip_low", "clip_high", "penalty"):
        assert getattr(M_GRPO, field) == getattr(role, field) == getattr(gspo, field)
    assert role_method(algo.METHODS["hill"]).level == "token"
    assert role_method(algo.method("hill", level="sequence_sum")).level == "token"  # has no slope


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<call>a</call> and <call> b\nc </call>", ["a", "b\nc"]),
        ("<call></call><call> </call>", []),
        ("<call>never ends", []),
        ("nothing", []),
    ],
)
def test_calls_are_read_from_their_tags(text, calls):
    assert calls_of(CallsConfig().form, text) == calls


def seen(plan, rounds, there, **further):
    shape = np.shape(there)
    facts = {"lengths": np.asarray(there) * 5, "noise": np.full(shape, 0.6), **further}
    return algo.Seen(
        rounds=rounds, step=0, steps=1, room=20, prompt_ids=np.arange(shape[0]),
        drawn=np.sum(there, axis=1), **facts,
    )  # fmt: skip


def test_rounds_of_two_main_agents():
    """K = 2, d = 2, D = 3: places 0-1 first turns, 2-7 answers, 8-9 what is gone on with.

    Of the first prompt one calls three times and one not at all, of the second one calls once.
    """
    plan = algo.plan(algo.method("m_grpo", calls=2, calls_max=3), 2, 2)
    assert (plan.places, plan.kept, plan.width, dict(plan.roles)) == (10, 2, 2, {SUB: range(2, 8)})
    assert plan.aligned
    assert plan.reads
    assert plan.marks
    nothing = np.zeros((2, 10), bool)
    begun = plan.wants(seen(plan, (), nothing))
    assert [(w.prompt, w.first, w.count, w.context) for w in begun.wants] == [
        (0, 0, 2, "main"),
        (1, 0, 2, "main"),
    ]
    there, calls = nothing.copy(), np.zeros((2, 10), int)
    there[:, :2], calls[0, 0], calls[1, 1] = True, 3, 1
    asked = plan.wants(seen(plan, ("first",), there, calls=calls))
    assert asked.role == SUB
    found = [(w.prompt, w.first, w.count, w.context, w.of, w.said) for w in asked.wants]
    assert found == [*((0, 2 + j, 1, "called", 0, j) for j in range(3)), (1, 5, 1, "called", 1, 0)]
    there[0, 2:5] = there[1, 5] = True
    going_on = plan.wants(seen(plan, ("first", SUB), there, calls=calls))
    assert going_on.role == ""
    found = [(w.prompt, w.first, w.count, w.context, w.begin, w.of, w.said) for w in going_on.wants]
    assert found == [(0, 8, 1, "main", "answers", 0, 2), (1, 9, 1, "main", "answers", 1, 5)]
    there[0, 8] = there[1, 9] = True
    rewards = np.where(there, 0.0, NAN)
    columns = np.stack([np.where(there, 1.0, NAN), np.where(there, 0.0, NAN)], axis=-1)
    columns[1, 9, 0] = 0.0
    formed, judged = np.zeros((2, 10), bool), np.full((2, 10), NAN)
    formed[0, [2, 4]] = formed[1, 5] = True
    judged[0, 2], judged[1, 5] = 1.0, 0.5  # nobody has judged the answer in place 4
    noise = np.full((2, 10), 0.6)
    noise[0, 3] = 0.1  # the lowest of three: this call is left out
    over = seen(
        plan, ("first", SUB, "answered"), there, calls=calls, noise=noise, rewards=rewards,
        columns=columns, formed=formed, judged=judged,
    )  # fmt: skip
    assert plan.wants(over) is None
    finished = plan.finish(over)
    assert finished.place.tolist() == [[8, 1], [0, 9]]
    assert finished.of_roles[SUB].tolist() == [[2, 4, -1, -1], [-1, -1, 5, 5]]
    np.testing.assert_allclose(
        finished.rewards[SUB], [[1.0, NAN, NAN, NAN], [NAN, NAN, 0.3, 0.3]], rtol=1e-12
    )
    assert finished.metrics == pytest.approx({
        "call/mean": 1.0, "call/dropped_fraction": 1 / 4, "call/duplicated_fraction": 1 / 4,
        "call/form_fraction": 3 / 4, "call/judged_fraction": 2 / 3,
        "call/reward_mean": (1 + 0.3 + 0.3) / 3,
    })  # fmt: skip


def test_an_answer_is_not_paid_if_nobody_knows_how_its_main_agent_did():
    plan = algo.plan(algo.method("m_grpo", calls=1, calls_max=1), 2, 1)
    there, calls = np.ones((1, 6), bool), np.array([[1, 1, 0, 0, 0, 0]])
    rewards = np.array([[0.0, 0.0, NAN, NAN, 0.0, NAN]])  # a reward of the last one has failed
    columns = np.ones((1, 6, 2))
    facts = {"rewards": rewards, "columns": columns, "judged": np.zeros((1, 6))}
    formed = np.array([[False, False, True, True, False, False]])
    over = seen(plan, ("first", SUB, "answered"), there, calls=calls, formed=formed, **facts)
    np.testing.assert_allclose(plan.finish(over).rewards[SUB], [[0.6, NAN]])


def test_where_nobody_calls_the_plan_is_that_of_one_round():
    plan = algo.plan(algo.method("m_grpo", calls=2, calls_max=2), 2, 1)
    there = np.zeros((1, plan.places), bool)
    there[:, :2] = True
    facts = {"rewards": np.where(there, 1.0, NAN), "columns": np.ones((1, plan.places, 2))}
    facts |= {"formed": ~there & False, "judged": np.full(there.shape, NAN)}
    over = seen(plan, ("first",), there, calls=there * 0, **facts)
    assert plan.wants(over) is None
    finished = plan.finish(over)
    assert finished.place.tolist() == [[0, 1]]
    assert finished.of_roles[SUB].tolist() == [[-1] * 4]
    assert np.isnan(finished.rewards[SUB]).all()
    assert finished.metrics["call/mean"] == finished.metrics["call/reward_mean"] == 0


def test_more_calls_are_learned_from_than_answered_is_refused():
    with pytest.raises(ValueError, match="calls_max: must be at least calls = 8, got 4"):
        algo.method("m_grpo", calls_max=4)
