"""Plans that put words around every prompt: who is asked what, by hand."""

import numpy as np

from jgrpo import algo

SIZE = 4


def seen(prompts=1, **further):
    shape = (prompts, 2 * SIZE)
    facts = {"rounds": (), "step": 0, "steps": 600, "lengths": np.zeros(shape, int)} | further
    return algo.Seen(
        room=9, prompt_ids=np.arange(prompts), drawn=np.zeros(prompts, int),
        noise=np.zeros(shape), **facts,
    )  # fmt: skip


def test_the_budget_of_the_step_is_told_to_every_completion():
    """Steps 0, 149, 150, 300, 450: 256, 256, 179.2, 125.44, 87.81 tokens, told in whole ones."""
    plan, told = algo.plan(algo.METHODS["train_long_think_short"], SIZE, 2), []
    for step in (0, 149, 150, 300, 450):
        first, second = plan.wants(seen(2, step=step)).wants
        assert (first.prompt, first.first, first.count, first.context) == (0, 0, SIZE, "budget")
        assert (second.prompt, second.of) == (1, first.of)
        assert first.kept
        assert first.ratio == algo.Ratio.SAME  # trained as it was drawn
        told.append(first.of)
    assert told == [256, 256, 179, 125, 88]


def test_solutions_and_predictions_are_asked_at_once():
    plan = algo.plan(algo.METHODS["masa"], SIZE, 1)
    solutions, predictions = plan.wants(seen()).wants
    assert (solutions.first, solutions.count, solutions.context) == (0, SIZE, "")
    assert (predictions.first, predictions.count, predictions.context) == (SIZE, SIZE, "predict")
    assert plan.wants(seen(rounds=("first",))) is None
    assert (plan.groups, plan.kept, plan.places) == (2, SIZE, 2 * SIZE)


def test_predictions_gate_and_shorten_the_solutions():
    """Means 0/8 and 8/8 leave a prompt out; of 40.3 tokens the limit is 81; of none, the run's."""
    nan = np.nan
    m = algo.method("masa", plan="predict_first")
    plan = algo.plan(m, SIZE, 5)
    first = plan.wants(seen(5))
    assert [(w.first, w.context) for w in first.wants] == [(SIZE, "predict")] * 5
    predicted = np.array([[0.0, 30], [0.5, 40.3], [1.0, 30], [nan, nan], [0.25, 0.0]])
    then = plan.wants(seen(5, rounds=("predictions",), predicted=predicted))
    assert [(w.prompt, w.first, w.limit) for w in then.wants] == [(1, 0, 81), (3, 0, 0), (4, 0, 1)]
    lengths = np.ones((5, 2 * SIZE), int)
    lengths[[0, 2], :SIZE] = 0
    over = {"rounds": ("predictions", "solutions"), "predicted": predicted, "lengths": lengths}
    assert plan.wants(seen(5, **over)) is None
    place = plan.finish(seen(5, **over)).place
    assert place[0].tolist() == [-1] * SIZE + [*range(SIZE, 2 * SIZE)]
    assert place[1].tolist() == [*range(2 * SIZE)]


def test_if_all_predictions_are_sure_nobody_solves_anything():
    plan = algo.plan(algo.method("masa", plan="predict_first"), SIZE, 2)
    sure = np.array([[0.0, 30], [1.0, 30]])
    assert plan.wants(seen(2, rounds=("predictions",), predicted=sure)) is None
