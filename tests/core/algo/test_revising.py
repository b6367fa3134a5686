"""Plans that revise completions: refined by what they fail, or commented on; by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgrpo import algo
from jgrpo.learner.batch import with_injected
from jgrpo.rewards.judges import share
from jgrpo.types import Batch, Prompts

SATISFIED, WEIGHTS = [[1, 0, 1], [1, 1, 0], [0, 0, 1]], [3, 2, 1]


def seen(m, rubric=None, rounds=("first",), *, size, **further):
    """What a plan sees of prompts whose completions have such scores; nan: not drawn."""
    given = np.full((1, size), 0.5) if rubric is None else np.asarray(rubric, float)
    places = algo.plan(m, size, len(given)).places
    given = np.pad(given, [(0, 0), (0, places - given.shape[1])], constant_values=np.nan)
    there = ~np.isnan(given)
    facts = {"lengths": there * 5, "rubric": given, "rewards": given}
    return algo.Seen(
        rounds=rounds, step=0, steps=1, room=20, prompt_ids=np.arange(len(given)),
        drawn=there.sum(axis=1), noise=np.zeros(there.shape), **(facts | further),
    )  # fmt: skip


def test_rgr_grpo_worked_example():
    """Satisfied [[1,0,1],[1,1,0],[0,0,1]], weights [3,2,1]: [.667,.833,.167], best 1, refine."""
    m = algo.METHODS["rgr_grpo"]
    scores = [share(satisfied, WEIGHTS) for satisfied in SATISFIED]
    np.testing.assert_allclose(scores, [0.667, 0.833, 0.167], atol=5e-4)
    plan = algo.plan(m, 3, 2)
    wanted = plan.wants(seen(m, [scores, [0, 1, 1]], size=3))
    (want,) = wanted.wants
    assert (want.prompt, want.first, want.count, want.of) == (0, 3, 1, 1)
    assert (want.context, want.kept, want.ratio) == ("criteria", False, algo.Ratio.BEHAV)
    after = seen(m, [[*scores, 0.1], [0, 1, 1, np.nan]], ("first", "criteria"), size=3)
    assert plan.wants(after) is None
    # The refined one is worse than the best, and stays; the worst makes room.
    assert plan.finish(after).place.tolist() == [[0, 1, 3], [0, 1, 2]]


def test_ties_and_missing_scores():
    m = algo.method("rgr_grpo", refined_rows=2)
    plan, nan = algo.plan(m, 4, 3), np.nan
    rubric = [[0.5, 0.5, 0.5, 0.5], [nan, 0.5, 0.2, 0.2], [nan] * 4]
    seen_first = seen(m, rubric, size=4, lengths=np.array([[5] * 4 + [0] * 2] * 3))
    wants = plan.wants(seen_first).wants
    assert [(want.prompt, want.of, want.count) for want in wants] == [(0, 0, 2), (1, 1, 2)]
    drawn = np.array([[5] * 6, [5] * 6, [5] * 4 + [0] * 2])
    place = plan.finish(seen(m, rubric, ("first", "criteria"), size=4, lengths=drawn)).place
    assert place.tolist() == [[0, 1, 5, 4], [4, 1, 2, 5], [0, 1, 2, 3]]


def test_nothing_is_refined_where_the_best_is_perfect():
    m = algo.METHODS["rgr_grpo"]
    assert algo.plan(m, 3, 1).wants(seen(m, [[0, 1, 0]], size=3)) is None


def test_thinktuning_worked_example():
    """G = 8, gamma = .25: rows 0 and 1 are guided."""
    m = algo.METHODS["thinktuning"]
    plan = algo.plan(m, 8, 1)
    comments = plan.wants(seen(m, size=8)).wants
    assert [(w.first, w.of, w.context, w.count) for w in comments] == [
        (8, 0, "teacher", 1),
        (9, 1, "teacher", 1),
    ]
    further = plan.wants(seen(m, [[0.5] * 10], ("first", "teacher"), size=8)).wants
    assert [(w.first, w.begin, w.of, w.said) for w in further] == [
        (10, "feedback", 0, 8),
        (11, "feedback", 1, 9),
    ]
    assert {w.ratio for w in further} == {algo.Ratio.UNIT}
    after = seen(m, [[0.5] * 12], ("first", "teacher", "feedback"), size=8)
    assert plan.wants(after) is None
    assert plan.finish(after).place.tolist() == [[10, 11, 2, 3, 4, 5, 6, 7]]
    assert not plan.reads


@pytest.mark.parametrize(("share", "size"), [(0.0, 8), (0.25, 3)])
def test_a_share_of_less_than_one_row_comments_on_nobody(share, size):
    m = algo.method("thinktuning", feedback_share=share)
    plan = algo.plan(m, size, 1)
    assert plan.wants(seen(m, size=size)) is None
    assert plan.finish(seen(m, size=size)).place.tolist() == [list(range(size))]


def test_a_comment_is_trained_by_its_probability_where_it_led_to_something_good():
    """Rows of draft, comment, continuation; A = 1.2 and -1: .5 / .6 at the comment of the first.

    The comment of the second is not in the loss at all.
    """
    m = algo.method("thinktuning", weights="token_sum")
    injected = np.array([[[False, True, False]] * 2])
    zeros, ones = np.zeros((1, 2, 3), np.float32), np.ones((1, 2, 3), bool)
    prompts = Prompts(uid=np.zeros(1, int), tokens=np.ones((1, 1), int), mask=ones[:, :1, 0])
    advantages = np.array([[[1.2] * 3, [-1.0] * 3]], np.float32)
    batch = Batch(
        prompts=prompts, tokens=np.ones((1, 2, 3), int), mask=ones, weights=zeros,
        advantages=advantages, old_logp=zeros,
    )  # fmt: skip
    weighed = with_injected(batch, injected, m.loss_on_injected, m.loss_on_injected_losers)
    assert weighed.mask[0].tolist() == [[True, True, True], [True, False, True]]
    np.testing.assert_array_equal(weighed.advantages, advantages)
    logp = jnp.full((2, 3), jnp.log(0.5))
    old = jnp.where(injected[0], 0.0, logp)
    loss = lambda x: algo.policy_loss(  # noqa: E731
        m, x, old_logp=old, mask=weighed.mask[0], advantages=weighed.advantages[0],
        off_policy=injected[0],
    )[0]  # fmt: skip
    assert float(loss(logp)) == pytest.approx(-(2 * 1.2 + 1.2 * 0.5 / 0.6) + 2 * 1.0, rel=1e-5)
    slope = np.asarray(jax.grad(loss)(logp))
    assert slope[0, 1] == pytest.approx(-1.2 * 0.1 * 0.5 / 0.6**2, rel=1e-5)
    assert slope[1, 1] == 0


def test_a_weight_of_nothing_takes_injected_tokens_out_for_all():
    injected = np.array([[[True, False]]])
    one = np.ones((1, 1, 2), np.float32)
    prompts = Prompts(uid=np.zeros(1, int), tokens=np.ones((1, 1), int), mask=np.ones((1, 1), bool))
    batch = Batch(
        prompts=prompts, tokens=np.ones((1, 1, 2), int), mask=one > 0, weights=one, advantages=one,
        old_logp=one,
    )  # fmt: skip
    assert with_injected(batch, injected, 0.0, 0.0).mask.tolist() == [[[False, True]]]
    half = with_injected(batch, injected, 0.5, 0.0)
    assert half.advantages.tolist() == [[[0.5, 1.0]]]
