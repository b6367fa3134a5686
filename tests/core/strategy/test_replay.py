"""The store of completions: a ring, by hand."""

import numpy as np
import pytest

from jgrpo import algo, config_io
from jgrpo.strategy import replay
from jgrpo.types import Prompts, Rollouts, Standing

METHOD = algo.method("prioritized_replay", replay_capacity=3, replay_start=0.5)


def rollouts(tokens, came_back=()):
    """Two groups of two completions of two tokens each; (p, g) in `came_back` are of earlier."""
    tokens = np.asarray(tokens, np.int32).reshape(2, 2, 2)
    ratio, zeros = np.zeros((2, 2), np.int64), np.zeros((2, 2))
    for at in came_back:
        ratio[at] = algo.Ratio.RECORDED
    no = zeros.astype(bool)
    standing = Standing(
        round=ratio * 0 + 1, level=ratio * 0, ratio=ratio, likelihood=zeros, weight=zeros + 1,
        counted=~no, replaced=no, again=no,
    )  # fmt: skip
    prompts = Prompts(uid=np.arange(2), tokens=np.ones((2, 1), int), mask=np.ones((2, 1), bool))
    return Rollouts(
        prompts=prompts, tokens=tokens, mask=np.ones((2, 2, 2), bool),
        behavior_logp=np.zeros((2, 2, 2), np.float32), finished=~no, standing=standing,
    )  # fmt: skip


def after(store, ids, tokens, correct, **further):
    drawn = rollouts(tokens, **further)
    logp = -0.5 * np.asarray(drawn.tokens, np.float32)
    return replay.observed(
        METHOD, store, np.array(ids), drawn, logp, np.array(correct, bool), np.ones((2, 2), bool)
    )


def test_the_store_is_a_ring_and_solved_prompts_leave_it():
    empty = replay.fresh(METHOD, 6, 4)
    one = after(empty, [4, 2], [[1, 2], [3, 4], [5, 6], [7, 8]], [[1, 0], [0, 1]])
    assert one.owner.tolist() == [4, 2, -1]
    assert one.tokens[:2].tolist() == [[1, 2, 0, 0], [7, 8, 0, 0]]
    assert one.logp[1].tolist() == [-3.5, -4, 0, 0]
    assert one.lengths.tolist() == [2, 2, 0]
    assert one.successes.tolist() == [0, 0, 1, 0, 1, 0]
    assert not one.started  # half of the step was right, not more
    two = after(one, [4, 0], [[9, 9], [8, 8], [7, 7], [6, 6]], [[1, 0], [1, 0]])
    assert two.owner.tolist() == [0, 2, 4]  # the oldest made room
    assert replay.candidates(two, np.array([4, 0, 5]), 2).tolist() == [[2, -1], [0, -1], [-1, -1]]
    three = after(two, [4, 5], [[1, 1], [2, 2], [3, 3], [4, 4]], [[1, 1], [1, 0]])
    assert three.started
    assert three.retired.tolist() == [False] * 4 + [True, False]
    assert three.owner.tolist() == [0, 5, -1]
    assert [np.asarray(x).dtype for x in vars(three).values()] == [
        np.asarray(x).dtype for x in vars(empty).values()
    ]


def test_the_newest_of_a_prompt_come_first():
    store = replay.fresh(METHOD, 6, 2)
    for tokens in ([1, 1], [2, 2], [3, 3], [4, 4]):
        store = after(store, [4, 5], [tokens, tokens, tokens, tokens], [[1, 0], [0, 0]])
    places = replay.candidates(store, np.array([4]), 2)[0]
    assert store.tokens[places].tolist() == [[4, 4], [3, 3]]


def test_what_came_back_is_not_stored_again_but_counts():
    store = replay.fresh(METHOD, 6, 2)
    found = after(
        store, [1, 3], [[1, 1], [2, 2], [3, 3], [4, 4]], [[0, 1], [0, 1]], came_back=[(0, 1)]
    )
    assert found.owner.tolist() == [3, -1, -1]
    assert found.successes.tolist() == [0, 1, 0, 1, 0, 0]


@pytest.fixture
def cfg(root):
    words = ["run.dir=x", "method=prioritized_replay", "data.num_prompts_per_step=4"]
    return config_io.load(root / "configs" / "quickstart.yaml", words)


def in_order(cursor, count):
    """An order of six prompts, again and again."""
    return np.arange(cursor, cursor + count) % 6


def test_stored_prompts_are_asked_first_and_retired_ones_no_more(cfg):
    store = replay.fresh(METHOD, 6, 2)
    assert replay.to_ask(cfg, store, in_order, 4).ids.tolist() == [4, 5, 0, 1]
    retired = np.array([True, False, False, False, False, True])
    filled = {"owner": np.array([3, 3, 1]), "successes": np.array([0, 4, 0, 4, 0, 0])}
    store = replay.Store(**(vars(store) | filled | {"retired": retired}))
    assert replay.to_ask(cfg, store, in_order, 4) == (pytest.approx(np.array([4, 1, 2, 3])), 0, 10)
    store = replay.Store(**(vars(store) | {"started": np.array(True)}))
    ids, replayed, after_it = replay.to_ask(cfg, store, in_order, 3)
    assert replayed == 2  # half of four
    assert set(ids[:2].tolist()) == {1, 3}
    assert ids[2:].tolist() == [4, 2]
    assert after_it == 9  # 3, 4, 5, 0, 1, 2


def test_retired_prompts_are_asked_where_no_others_are_left(cfg):
    store = replay.fresh(METHOD, 6, 2)
    store = replay.Store(**(vars(store) | {"retired": np.arange(6) != 2}))
    found = replay.to_ask(cfg, store, in_order, 1)
    assert found.ids.tolist() == [2, 1, 3, 4]
    assert found.replayed == 0


def test_too_few_prompts_and_too_large_a_store_are_refused(cfg):
    with pytest.raises(ValueError, match="a step asks 4 different prompts, the data have 3"):
        replay.to_ask(cfg, replay.fresh(METHOD, 3, 2), in_order, 0)
    with pytest.raises(ValueError, match=r"replay_capacity: 3 completions of .* more than 2 GiB"):
        replay.fresh(METHOD, 3, 2**28)
