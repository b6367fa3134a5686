"""What is asked of the sampler, and answers behind their beginnings."""

import dataclasses

import numpy as np
from small_models import prompts, sampler

from jgrpo.keys import named_key, root_key
from jgrpo.rollout.sample import Sampling
from jgrpo.strategy.asks import Asks, shares

KEY = named_key(root_key(0), 0, "rollout")
G, LIMIT = 4, 10
SOLUTIONS = [[20, 21, 22, 23], [30, 31], [40, 41, 42, 43, 44, 45]]


def answered(root, asks, slots=0, **settings):
    engine, params = sampler(root, eos_ids=(1, 5, 9), **settings)
    asked = prompts(3)
    size, wanted = asks.sizes(slots)
    engine = dataclasses.replace(engine, slots=wanted)
    drawn = engine.generate(
        params,
        asks.prompts(asked),
        KEY,
        group_size=size,
        max_tokens=LIMIT,
        sampling=Sampling(),
        counts=asks.to_draw,
        first=asks.first,
        limits=LIMIT - asks.injected,
    )
    return asks.answered(drawn, asked, G)


def led(lengths, solutions):
    """Asks for each completion by itself, with a beginning of so many tokens of the solution."""
    at = list(np.ndindex(*lengths.shape))
    return Asks(
        prompt=np.array([p for p, _ in at]),
        first=np.array([g for _, g in at]),
        counts=np.ones(len(at), int),
        beginnings=[tuple(solutions[p][: lengths[p, g]]) for p, g in at],
    )


def plain(root):
    engine, params = sampler(root, eos_ids=(1, 5, 9))
    limits = {"group_size": G, "max_tokens": LIMIT, "sampling": Sampling()}
    return engine.generate(params, prompts(3), KEY, **limits)


def rows(rollouts):
    """Tokens, log-probs and end of each completion."""
    where = [(p, g) for p in range(rollouts.mask.shape[0]) for g in range(rollouts.mask.shape[1])]
    found = {}
    for at in where:
        mask = np.asarray(rollouts.mask)[at]
        tokens = np.asarray(rollouts.tokens)[at][mask].tolist()
        logp = np.asarray(rollouts.behavior_logp)[at][mask]
        found[at] = tokens, logp, bool(rollouts.finished[at])
    return found


def same(one, other):
    assert one.keys() == other.keys()
    for at in one:
        assert one[at][0] == other[at][0], at
        np.testing.assert_allclose(one[at][1], other[at][1], atol=1e-5)
        assert one[at][2] == other[at][2]


def test_asks_without_beginnings_draw_what_whole_groups_draw(root):
    expected = rows(plain(root))
    same(rows(answered(root, led(np.zeros((3, G), int), SOLUTIONS))), expected)
    counts = np.array([G, G, G])
    same(rows(answered(root, shares(counts, counts * 0), slots=5)), expected)


def test_plain_groups_are_told_from_everything_else():
    counts = np.array([G, G, G])
    groups = shares(counts, counts * 0)
    assert groups.whole(3, G)
    assert not groups.whole(3, G + 1)
    assert not groups.whole(2, G)
    others = {
        "prompt": np.array([0, 2, 1]),
        "first": np.array([0, 1, 0]),
        "counts": np.array([G, G - 1, G]),
        "beginnings": [(), (20,), ()],
        "contexts": [None, [7, 8], None],
        "most": [LIMIT, LIMIT - 1, LIMIT],
        "given": [False, True, False],
    }
    for name, value in others.items():
        assert not dataclasses.replace(groups, **{name: value}).whole(3, G), name


def test_a_completion_does_not_depend_on_the_round_that_drew_it(root):
    expected = rows(plain(root))
    first = rows(answered(root, shares(np.array([1, 3, 0]), np.zeros(3, int))))
    second = rows(answered(root, shares(np.array([3, 1, 4]), np.array([1, 3, 0]))))
    same({at: first[at] if first[at][0] else second[at] for at in expected}, expected)


def test_completions_stand_behind_their_beginnings(root):
    lengths = np.array([[3, 3, 0, 0], [2, 0, 0, 0], [6, 6, 6, 6]])
    found, expected = answered(root, led(lengths, SOLUTIONS)), plain(root)
    for p, g in np.ndindex(3, G):
        k, mask = lengths[p, g], found.mask[p, g]
        assert found.tokens[p, g, :k].tolist() == SOLUTIONS[p][:k]
        assert found.injected[p, g].tolist() == [t < k for t in range(found.mask.shape[-1])]
        assert k < mask.sum() <= LIMIT
        assert (found.behavior_logp[p, g, :k] == 0).all()
        assert (found.behavior_logp[p, g, k:][mask[k:]] < 0).all()
        ended = found.tokens[p, g][mask][-1] in (1, 5, 9)
        assert found.finished[p, g] == ended
        assert ended or mask.sum() == LIMIT
    # Who is not guided draws what he would draw among others who are not.
    theirs, ours = rows(expected), rows(found)
    alone = [at for at in ours if lengths[at] == 0]
    same({at: ours[at] for at in alone}, {at: theirs[at] for at in alone})


def test_the_log_probs_of_a_guided_completion_are_those_behind_its_beginning(root):
    from small_models import learner, model

    from jgrpo.learner.batch import unweighted

    found = answered(root, led(np.full((3, G), 2), SOLUTIONS))
    batch = unweighted(found, np.ones((3, G), bool))
    logp = np.asarray(learner().logps(model()[2], batch))
    drawn = found.mask & ~found.injected
    np.testing.assert_allclose(logp[drawn], found.behavior_logp[drawn], atol=1e-5)


def test_beginnings_that_were_drawn_before_keep_their_log_probs_and_given_ones_are_whole(root):
    asks = Asks(
        prompt=np.array([0, 1]),
        first=np.array([1, 0]),
        counts=np.array([1, 1]),
        beginnings=[(20, 21, 22), (30, 1)],
        logps=[(-0.5, -0.25), ()],
        given=[False, True],
    )
    found = answered(root, asks)
    assert found.injected[0, 1, :4].tolist() == [False, False, True, False]
    assert found.behavior_logp[0, 1, :3].tolist() == [-0.5, -0.25, 0.0]
    assert found.mask[0, 1].sum() > 3
    assert found.tokens[1, 0][found.mask[1, 0]].tolist() == [30, 1]
    assert found.injected[1, 0, :2].all()
    assert found.finished[1, 0]
    assert not found.mask[2].any()


def test_what_is_asked_under_a_context_is_what_its_prompt_gives(root):
    """The same noise, prompt and place: a context that is another prompt draws as that prompt."""
    asked = prompts(3)
    other = np.asarray(asked.tokens)[1][np.asarray(asked.mask)[1]].tolist()
    own = np.asarray(asked.tokens)[0][np.asarray(asked.mask)[0]].tolist()
    both = Asks(
        prompt=np.array([0, 0]),
        first=np.array([0, 2]),
        counts=np.array([2, 2]),
        beginnings=[(), ()],
        contexts=[None, own],
    )
    expected = {at: row for at, row in rows(plain(root)).items() if at[0] == 0}
    found = rows(answered(root, both))
    same({at: found[at] for at in expected}, expected)
    changed = dataclasses.replace(both, contexts=[None, other])
    assert rows(answered(root, changed))[0, 2][0] != expected[0, 2][0]
