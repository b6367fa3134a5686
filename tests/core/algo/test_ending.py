"""The rule that ends completions early, by hand: where it cuts, who is asked again, what trains."""

import numpy as np

from jgrpo import algo
from jgrpo.algo.ending import stops

SIZE = 3
# f = 0, .5, 1.3, 1.1 after steps of one token each: r = .6225, .6900, .4502.
SCORES = np.array([[[0.0, 0.5, 1.3, 1.1, 2.0]]])


def stop_of(scores=SCORES, segments=None, tokens=5, **constants):
    segments = np.arange(scores.shape[-1])[None, None] if segments is None else segments
    mask = np.arange(scores.shape[-1])[None, None] < tokens
    return int(stops(algo.method("ws_grpo", **constants), scores, segments, mask)[0, 0])


def test_a_completion_ends_behind_the_first_doubted_step():
    assert stop_of() == 3
    assert stop_of(stop_below=0.45) == 0  # .4502 is not below
    assert stop_of(stop_below=0.6226, step_low=1) == 1
    assert stop_of(stop_below=0.65, step_low=2) == 3  # the first step is one too few
    assert stop_of(step_low=4) == 0
    assert stop_of(stop_below=0.0, step_low=0) == 0


def test_the_last_step_of_a_completion_is_never_doubted():
    assert stop_of(tokens=3) == 0
    assert stop_of(tokens=4) == 3
    assert stop_of(stop_below=1.0, step_low=1, tokens=1) == 0
    assert stop_of(tokens=0, stop_below=1.0, step_low=1) == 0


def test_a_step_is_cut_behind_its_last_token():
    """Steps of 2, 1 and 3 tokens: f = 0 before them, then 0.5, -1 and on."""
    scores = np.array([[[0.0, 9.0, 0.5, -1.0, 7.0, 7.0]]])
    segments = np.array([[[0, 0, 1, 2, 2, 2]]])
    assert stop_of(scores, segments, 6, step_low=1) == 3


def seen(rounds=(), stops=None, lengths=None, room=7):
    shape = (2, 2 * SIZE)
    return algo.Seen(
        rounds=rounds, step=0, steps=9, room=room, prompt_ids=np.arange(2),
        drawn=np.zeros(2, int), noise=np.zeros(shape), stops=stops,
        lengths=np.zeros(shape, int) if lengths is None else lengths,
    )  # fmt: skip


def test_answers_are_asked_behind_the_cuts_and_take_the_places_of_what_was_cut():
    plan = algo.plan(algo.method("ws_grpo", plan="stop"), SIZE, 2)
    assert (plan.places, plan.kept, plan.reads, plan.uneven) == (2 * SIZE, SIZE, False, False)
    assert plan.wants(seen()).wants == ()
    found = np.array([[0, 4, 7, 0, 0, 0], [8, 0, 0, 0, 0, 0]])
    asked = plan.wants(seen(("first",), found))
    assert [(w.prompt, w.first, w.count) for w in asked.wants] == [(0, 4, 1), (0, 5, 1)]
    # Of the second prompt no token of an answer would be left.
    assert [(w.begin, w.of, w.tokens, w.phrase) for w in asked.wants] == [
        ("path", 1, 4, True), ("path", 2, 7, True),
    ]  # fmt: skip
    lengths = np.array([[9, 9, 9, 0, 6, 8], [9, 9, 9, 0, 0, 0]])
    over = seen(("first", "stop"), lengths=lengths)
    assert plan.wants(over) is None
    finished = plan.finish(over)
    assert finished.place.tolist() == [[0, 4, 5], [0, 1, 2]]
    assert finished.metrics == {"ws/stopped_fraction": 2 / 6}


def test_where_nothing_is_doubted_nobody_is_asked():
    plan = algo.plan(algo.method("ws_grpo", plan="stop"), SIZE, 2)
    assert plan.wants(seen(("first",), np.zeros((2, 2 * SIZE), int))) is None


def test_the_rule_is_off_unless_asked_for():
    assert algo.METHODS["ws_grpo"].plan == "uniform"
    assert "stops" not in algo.needs(algo.METHODS["ws_grpo"])
    assert "stops" in algo.needs(algo.method("ws_grpo", plan="stop"))
