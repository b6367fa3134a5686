"""Plans of several rounds: who is asked again and what stands in the group, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgrpo import algo
from jgrpo.algo.plans import best_draft
from jgrpo.algo.rounds import as_drawn, then_if, uniform

G = 8


def seen(m, rewards, rounds=("first",), *, size=G, step=60, **further):
    """What a plan sees of prompts with such rewards; nan and what is missing: not drawn."""
    rewards = np.asarray(rewards, float)
    places = algo.plan(m, size, len(rewards)).places
    rewards = np.pad(rewards, [(0, 0), (0, places - rewards.shape[1])], constant_values=np.nan)
    there = ~np.isnan(rewards)
    facts = {
        "lengths": there * 5,
        "noise": np.zeros(there.shape),
        "solutions": np.full(len(rewards), 7),
        "room": 20,
    }
    return algo.Seen(
        rounds=rounds, step=step, steps=100, prompt_ids=np.arange(len(rewards)),
        drawn=there.sum(axis=1), rewards=rewards, **(facts | further),
    )  # fmt: skip


def again(m, rewards, size=G, **further):
    """The round that follows the first, and the plan."""
    plan = algo.plan(m, size, len(rewards))
    return plan.wants(seen(m, rewards, size=size, **further)), plan


WRONG, MIXED = [0.0] * 8, [1.0, 0, 0, 0, 0, 0, 0, 0]


def test_scaf_grpo_worked_example():
    """Rewards 0 x 8, level rewards [0,0,0,0,0,1,1,1], step 60: level 6; adv 2.475, -.354 x 7."""
    m = algo.METHODS["scaf_grpo"]
    wanted, plan = again(m, [WRONG, MIXED])
    assert [(w.prompt, w.first, w.count, w.of) for w in wanted.wants] == [
        (0, 8 + k, 1, k + 1) for k in range(8)
    ]
    levels = [*WRONG, 0, 0, 0, 0, 0, 1, 1, 1]
    after = seen(m, [levels, [*MIXED, *[np.nan] * 8]], ("first", "hint"))
    assert plan.wants(after) is None
    place = plan.finish(after).place
    assert place.tolist() == [[13, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
    group = np.asarray(levels, np.float32)[place[:1]]
    np.testing.assert_allclose(
        np.asarray(algo.advantages(m, group).values),
        [[2.474867, *[-0.353552] * 7]],
        atol=2e-5,
    )
    assert again(m, [WRONG], step=49)[0] is None


def test_scaf_grpo_leaves_a_group_that_no_hint_solves():
    m = algo.METHODS["scaf_grpo"]
    after = seen(m, [[*WRONG, *WRONG]], ("first", "hint"))
    plan = algo.plan(m, G, 1)
    assert plan.finish(after).place.tolist() == [list(range(8))]


def test_cgi_worked_example():
    """[0,0,0,0] -> [0,0,0,1] -> adv [-.5,-.5,-.5,1.5]."""
    m = algo.METHODS["cgi"]
    wanted, plan = again(m, [[0, 0, 0, 0], [0, 1, 0, 0]], size=4)
    (want,) = wanted.wants
    assert (want.prompt, want.first, want.begin, want.tokens, want.drawn) == (
        0, 4, "solution", 7, False,
    )  # fmt: skip
    assert want.ratio == algo.Ratio.UNIT
    after = seen(m, [[0, 0, 0, 0, 1], [0, 1, 0, 0, np.nan]], ("first", "solution"), size=4)
    place = plan.finish(after).place
    assert place.tolist() == [[0, 1, 2, 4], [0, 1, 2, 3]]
    values = algo.advantages(m, np.array([[0, 0, 0, 1]], np.float32)).values
    np.testing.assert_allclose(np.asarray(values), [[-0.5, -0.5, -0.5, 1.5]], atol=1e-5)


def test_guide_asks_whole_groups_again_and_trains_them_without_the_hint():
    m = algo.METHODS["guide_grpo"]
    wanted, plan = again(m, [WRONG, MIXED])
    (want,) = wanted.wants
    assert (want.first, want.count, want.context, want.kept) == (8, 8, "hint", False)
    assert want.ratio == algo.Ratio.BEHAV
    after = seen(m, [[*WRONG, *MIXED], [*MIXED, *[np.nan] * 8]], ("first", "hint"))
    assert plan.finish(after).place.tolist() == [list(range(8, 16)), list(range(8))]


def test_guide_loss_worked_example():
    """A plain row and a hinted one: gamma .8511, loss -.6852.

    Row A logp [-1,-2], old [-1.1,-1.8]; row B hinted logp [-1.5,-.5], old [-.5,-.4]; advantages 1;
    ratios A [1.105,.819], B reshaped [.302,.515].
    """
    m = algo.METHODS["guide_grpo"]
    logp = np.array([[-1, -2], [-1.5, -0.5]], np.float32)
    old = np.array([[-1.1, -1.8], [-0.5, -0.4]], np.float32)
    hinted = np.array([[False, False], [True, True]])
    given = {"old_logp": old, "mask": np.ones((2, 2), bool), "advantages": np.ones(2, np.float32)}
    loss, metrics = algo.policy_loss(m, logp, **given, off_policy=hinted)
    assert loss == pytest.approx(-0.6852, abs=5e-5)
    ratios = np.exp(logp - old)
    gamma = np.quantile(ratios[1], 0.9)
    assert gamma == pytest.approx(0.8511, abs=5e-5)
    # The gradient of x / (x + gamma) with gamma held: gamma x / (x + gamma)^2, over four tokens.
    slope = jax.grad(lambda x: algo.policy_loss(m, x, **given, off_policy=hinted)[0])(logp)
    expected = gamma * ratios[1] / (ratios[1] + gamma) ** 2
    np.testing.assert_allclose(np.asarray(slope)[1], -expected / 4, rtol=1e-5)
    assert metrics["ratio/deviation_max"] == pytest.approx(abs(np.exp(-0.2) - 1), rel=1e-5)


def test_luffy_tokens_worked_example():
    """-A p / (p + .1), logp [-.1,-2,-5], A = 1.2: [-1.081,-.690,-.076]."""
    m = algo.method("cgi", weights="token_sum", trust="clip")
    for t, expected in enumerate((-1.081, -0.690, -0.076)):
        logp = jnp.array([[(-0.1, -2.0, -5.0)[t]]])
        loss, _ = algo.policy_loss(
            m, logp, old_logp=jnp.zeros((1, 1)), mask=jnp.ones((1, 1), bool),
            advantages=jnp.array([1.2]), off_policy=jnp.ones((1, 1), bool),
        )  # fmt: skip
        assert float(loss) == pytest.approx(expected, abs=1e-3)


def test_igrpo_worked_example():
    """Drafts [0,.1,1,1]: draft 2; the group is the second round alone."""
    m = algo.METHODS["igrpo"]
    wanted, plan = again(m, [[0, 0.1, 1, 1]], size=4)
    (want,) = wanted.wants
    assert (want.first, want.count, want.context, want.of, want.kept) == (4, 4, "draft", 2, True)
    assert best_draft(np.zeros(4)) == 0
    after = seen(m, [[0, 0.1, 1, 1, 1, 0, 1, 0]], ("first", "draft"), size=4)
    assert plan.finish(after).place.tolist() == [[4, 5, 6, 7]]


def test_expo_trains_right_explanations_outside_of_the_group():
    m = algo.METHODS["expo"]
    wanted, plan = again(m, [WRONG, WRONG, MIXED], step=25)
    assert [w.prompt for w in wanted.wants] == [0, 1]
    want = wanted.wants[0]
    assert (want.first, want.count, want.context, want.kept) == (8, 1, "answer", False)
    assert want.likelihood == pytest.approx(0.05 * 0.75)  # a quarter of the run is over
    rewards = [[*WRONG, 1], [*WRONG, 0], [*MIXED, np.nan]]
    place = plan.finish(seen(m, rewards, ("first", "answer"))).place
    assert place[:, :8].tolist() == [list(range(8))] * 3
    assert place[:, 8].tolist() == [8, -1, -1]


def test_serial_rewards_worked_example():
    """Correct [0,1,1,0,1]: r [0,1,.5,0,.25], adv [-.837,1.554,.359,-.837,-.239]."""
    m = algo.METHODS["s_grpo"]
    values = algo.advantages(m, np.array([[0, 1, 1, 0, 1]], np.float32)).values
    np.testing.assert_allclose(
        np.asarray(values), [[-0.836660, 1.553797, 0.358569, -0.836660, -0.239046]], atol=2e-5
    )
    nobody = algo.Side(valid=np.array([[True, False, True, True, True]]))
    unscaled = algo.method("s_grpo", base="none", scale="none")
    found = algo.advantages(unscaled, np.ones((1, 5), np.float32), nobody).values
    np.testing.assert_array_equal(np.asarray(found), [[1, 0, 0.5, 0.25, 0.125]])


def test_exits_leave_the_path_in_order_and_none_twice():
    """A path of 10 tokens: cuts at 1 + floor(9 u), and never beyond the room for an answer."""
    m = algo.METHODS["s_grpo"]
    noise = np.array([[0.0, 0.99, 0.5, 0.5], [0.0, 0.99, 0.5, 0.2]])
    given = {"noise": noise, "lengths": np.array([[10, 0, 0, 0], [10, 0, 0, 0]]), "size": 4}
    plan, rewards = algo.plan(m, 4, 2), np.full((2, 1), np.nan)
    (wanted) = plan.wants(seen(m, rewards, ("path",), **given))
    assert [(w.prompt, w.first, w.tokens) for w in wanted.wants] == [
        (0, 1, 5), (0, 2, 9), (1, 1, 2), (1, 2, 5), (1, 3, 9),
    ]  # fmt: skip
    short = plan.wants(seen(m, rewards, ("path",), **given, room=3))
    assert max(w.tokens for w in short.wants) == 3
    given["lengths"] = np.array([[10, 7, 11, 0], [10, 3, 7, 11]])
    after = seen(m, rewards, ("path", "exits"), **given)
    assert plan.wants(after) is None
    assert plan.finish(after).place.tolist() == [[1, 2, -1, 0], [1, 2, 3, 0]]


def test_a_group_without_a_reward_is_not_unsolved():
    m = algo.METHODS["cgi"]
    assert again(m, [[np.nan] * 4, [np.nan, 0, np.nan, 0]], size=4)[0].wants[0].prompt == 1


def test_conditions_nest():
    """Two conditions in a row ask two rounds, in places of their own."""
    everybody = lambda seen: np.ones(len(seen.prompt_ids), bool)  # noqa: E731
    as_it_is = lambda seen, place, again: algo.Finished(place=place)  # noqa: E731
    one = then_if(
        uniform(2), "second", everybody, lambda seen, p: [algo.Want(p, 2, 1)], more=1,
        finish=as_it_is,
    )  # fmt: skip
    two = then_if(
        one, "third", everybody, lambda seen, p: [algo.Want(p, 3, 2)], more=2, finish=as_it_is
    )
    assert (two.places, two.kept) == (5, 2)
    m, names = algo.METHODS["grpo"], []
    while wanted := two.wants(seen(m, np.zeros((3, 2)), tuple(names), size=2)):
        names.append(wanted.name)
    assert names == ["first", "second", "third"]
    assert as_drawn(2, 3).place.tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("name", ["scaf_grpo", "cgi", "guide_grpo", "expo"])
def test_with_every_extra_disabled_it_is_the_first_round(name):
    """A threshold that no group is below: the plan asks once and keeps what it has."""
    m = algo.method(name, unsolved_at=-1.0)
    wanted, plan = again(m, [WRONG, MIXED])
    assert wanted is None
    place = plan.finish(seen(m, [WRONG, MIXED])).place
    assert place[:, :8].tolist() == [list(range(8))] * 2
    assert (place[:, 8:] == -1).all()
