"""Unequal groups in equal rows: completions stay with their prompts, updates do not change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import by_hand
from small_models import VOCAB, learner, model, prompts

from jgrpo import algo
from jgrpo.learner.batch import minibatches, unweighted, with_advantages
from jgrpo.places import logps_in_rows, rows_of
from jgrpo.types import Contexts, Rollouts

P, G, T, WIDTH = 8, 6, 5, 2
COUNTS = np.array([6, 1, 2, 0, 3, 2, 1, 1])  # two a prompt on average
METHOD = algo.method("grpo", weights="constant_length", constant_length_tokens=4)
KEY = jax.random.key(0)


@functools.cache
def batch():
    """Off-policy, with a reference; the first completion of the first prompt is not trained."""
    rng = np.random.default_rng(0)
    present = np.arange(G) < COUNTS[:, None]
    mask = (np.arange(T) < rng.integers(1, T + 1, (P, G, 1))) & present[..., None]
    drawn = Rollouts(
        prompts=prompts(P),
        tokens=rng.integers(3, VOCAB, mask.shape).astype(np.int32),
        mask=mask,
        behavior_logp=-rng.random(mask.shape).astype(np.float32),
        finished=present,
    )
    trained = present.copy()
    trained[0, 0] = False
    values = np.where(trained, rng.normal(size=(P, G)), 0).astype(np.float32)
    advantages = algo.Advantages(values=jnp.asarray(values), keep=jnp.asarray(trained))
    made = with_advantages(unweighted(drawn, trained), advantages)
    logp = np.asarray(learner().logps(model()[2], made))
    near = lambda: (logp + 0.1 * rng.normal(size=logp.shape)).astype(np.float32)  # noqa: E731
    made = dataclasses.replace(made, old_logp=near(), ref_logp=near())
    return minibatches(METHOD, made, 1, KEY, present)[0]


@functools.cache
def updated():
    """Parameters and metrics after the update on the groups as they are."""
    one = learner(method=METHOD)
    state, metrics = jax.device_get(one.update(one.init(model()[2]), batch()))
    return state.params, metrics


def test_every_completion_stands_once_behind_its_prompt():
    whole = batch()
    rows = rows_of(whole, WIDTH)
    even = rows.apart(whole)
    assert even.tokens.shape == (2 * P, WIDTH, T)
    assert even.mask.sum() == whole.mask.sum()
    for field in ("tokens", "old_logp", "weights", "advantages", "ref_logp"):
        back = rows.together(getattr(even, field))
        np.testing.assert_array_equal(back[whole.mask], getattr(whole, field)[whole.mask])
    for q, p in enumerate(rows.prompt):
        own = rows.place[q][rows.place[q] >= 0]
        assert (own // G == p).all()
        np.testing.assert_array_equal(even.prompts.tokens[q], whole.prompts.tokens[p])


def test_equal_groups_take_one_row_each():
    whole = batch()
    narrow = jax.tree.map(lambda x: x[:, :WIDTH] if x.ndim > 2 else x, whole)
    narrow = dataclasses.replace(narrow, mask=np.ones((P, WIDTH, T), bool))
    even = rows_of(narrow, WIDTH).apart(narrow)
    np.testing.assert_array_equal(even.tokens, narrow.tokens)
    np.testing.assert_array_equal(even.prompts.uid, narrow.prompts.uid)


def test_constant_length_counts_the_completions_that_exist():
    """B is 16, with the one that is not trained, and not the 48 places: weights 1 / (16 L)."""
    whole = batch()
    np.testing.assert_allclose(whole.weights[whole.mask], 1 / (COUNTS.sum() * 4), rtol=1e-6)
    assert not whole.weights[~whole.mask].any()


@pytest.mark.parametrize(
    ("devices", "fsdp", "size"), [(1, 1, 2), (8, 2, 2), by_hand(1, 1, 0), by_hand(8, 1, 1)]
)
def test_update_is_that_of_the_groups_on_any_microbatches_and_devices(devices, fsdp, size):
    (expected, metrics), whole = updated(), batch()
    other = learner(method=METHOD, devices=devices, fsdp=fsdp, microbatch_completions=size)
    even = rows_of(whole, WIDTH).apart(whole)
    state, found = jax.device_get(other.update(other.init(model()[2]), even))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, state.params, expected)
    assert metrics["loss/kl"] > 1e-5
    for name, value in metrics.items():
        np.testing.assert_allclose(found[name], value, rtol=5e-5, atol=1e-6, err_msg=name)


def test_completions_alone_make_one_program_whoever_is_there():
    (expected, _), whole = updated(), batch()
    first = (np.arange(P) < 2)[:, None, None]
    few = dataclasses.replace(whole, mask=whole.mask & first, weights=whole.weights * first)
    one = learner(method=METHOD)
    for given in (few, whole):
        even = rows_of(given, WIDTH, alone=True).apart(given)
        assert even.tokens.shape == (P * G, 1, T)
        assert even.mask.sum() == given.mask.sum()
        state, _ = jax.device_get(one.update(one.init(model()[2]), even))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, state.params, expected)
    assert one.compiled_updates == 1


def test_log_probs_come_back_to_their_places():
    whole = batch()
    one, rows = learner(), rows_of(whole, WIDTH)
    expected = np.asarray(one.logps(model()[2], whole))
    got = rows.together(one.logps(model()[2], rows.apart(whole)))
    alone = logps_in_rows(one, model()[2], whole, WIDTH, alone=True)
    empty = ~np.asarray(whole.mask).any(-1)
    for found in (got, alone):
        np.testing.assert_allclose(found[whole.mask], expected[whole.mask], atol=1e-6, rtol=1e-6)
        assert not found[empty].any()


def test_completions_go_behind_the_prompts_that_they_are_trained_under():
    """Contexts that are the prompts of other groups: log-probs are those under these prompts."""
    given, asked = batch(), prompts(P)
    turned = np.roll(np.arange(P), 1)
    draw = np.random.default_rng(2)
    trained = draw.integers(0, 2, (P, G))
    contexts = Contexts(
        tokens=np.asarray(asked.tokens)[turned][:, None],
        mask=np.asarray(asked.mask)[turned][:, None],
        asked=np.ones((P, G), int),
        trained=trained,
    )
    one = learner(method=METHOD)
    params = model()[2]
    both = dataclasses.replace(given, contexts=contexts)
    rows = rows_of(both, 4)
    found = rows.together(one.logps(params, rows.apart(both)))
    own = np.asarray(one.logps(params, given))
    tokens, mask = (np.asarray(x)[turned] for x in (asked.tokens, asked.mask))
    moved = dataclasses.replace(asked, tokens=tokens, mask=mask)
    other = np.asarray(one.logps(params, dataclasses.replace(given, prompts=moved)))
    expected = np.where(trained[..., None] == 1, other, own)
    mask = np.asarray(given.mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)
    assert np.abs(own - other)[mask].max() > 0.1
    for q in range(len(rows.prompt)):  # a row has one prompt
        members = trained.reshape(-1)[rows.place[q][rows.place[q] >= 0]]
        assert (members == rows.context[q]).all()
