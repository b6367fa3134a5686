"""Minibatches partition the prompts, and everything batch-scoped is fixed on whole minibatches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from small_models import prompts

from jgrpo import algo
from jgrpo.learner.batch import (
    mean_logp,
    minibatches,
    token_kl,
    unweighted,
    with_advantages,
    with_standing,
)
from jgrpo.types import Rollouts, Standing

P, G, T = 6, 2, 4
KEY = jax.random.key(0)
WEIGHTS = {
    "token_mean": algo.method("grpo", weights="token_mean"),
    "sequence_mean": algo.method("grpo", weights="sequence_mean"),
    "sequence_sum": algo.method("grpo", weights="sequence_sum"),
    "constant_length": algo.method("grpo", weights="constant_length", constant_length_tokens=10),
}


def rollouts():
    rng = np.random.default_rng(1)
    mask = np.arange(T) < rng.integers(1, T + 1, (P, G, 1))
    return Rollouts(
        prompts=prompts(P),
        tokens=rng.integers(0, 50, mask.shape).astype(np.int32),
        mask=mask,
        behavior_logp=np.where(mask, -rng.random(mask.shape), 0).astype(np.float32),
        finished=np.ones((P, G), bool),
    )


def batch():
    everything = unweighted(rollouts(), np.ones((P, G), bool))
    values = jnp.arange(P * G, dtype=jnp.float32).reshape(P, G)
    keep = jnp.ones((P, G), bool)
    return with_advantages(everything, algo.Advantages(values=values, keep=keep))


def test_completions_that_are_not_trained_leave_the_mask():
    trained = np.ones((P, G), bool)
    trained[2, 1] = False
    got = unweighted(rollouts(), trained)
    assert not got.mask[2, 1].any()
    others = np.delete(got.mask.reshape(-1, T), 5, axis=0)
    np.testing.assert_array_equal(others, np.delete(rollouts().mask.reshape(-1, T), 5, axis=0))
    np.testing.assert_array_equal(got.old_logp, rollouts().behavior_logp)


def test_each_token_gets_the_advantage_of_its_completion():
    got = batch()
    assert (got.advantages[3, 1] == 7).all()
    assert (got.advantages[5, 0] == 10).all()
    np.testing.assert_array_equal(got.mask, rollouts().mask)


def test_rows_without_an_advantage_leave_the_mask():
    keep = np.ones((P, G), bool)
    keep[4, 0] = False
    everything = unweighted(rollouts(), np.ones((P, G), bool))
    values = jnp.zeros((P, G))
    got = with_advantages(everything, algo.Advantages(values=values, keep=jnp.asarray(keep)))
    np.testing.assert_array_equal(got.mask, rollouts().mask & keep[..., None])


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_minibatches_partition_the_prompts_and_keep_rows_together(count):
    whole = batch()
    parts = minibatches(WEIGHTS["token_mean"], whole, count, KEY)
    assert [part.mask.shape[0] for part in parts] == [P // count] * count
    uid = np.concatenate([part.prompts.uid for part in parts])
    assert sorted(uid) == sorted(whole.prompts.uid)
    unweigh = lambda b: dataclasses.replace(b, weights=np.zeros(b.mask.shape, np.float32))  # noqa: E731
    rows = [whole.prompts.uid.tolist().index(u) for u in uid]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *map(unweigh, parts))
    expected = jax.tree.map(lambda x: np.asarray(x)[rows], unweigh(whole))
    for got, wanted in zip(jax.tree.leaves(joined), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_single_minibatch_keeps_the_order_and_several_are_shuffled_by_the_key():
    order = lambda count, seed: np.concatenate(  # noqa: E731
        [
            part.prompts.uid
            for part in minibatches(WEIGHTS["token_mean"], batch(), count, jax.random.key(seed))
        ]
    ).tolist()
    assert order(1, 0) == batch().prompts.uid.tolist()
    assert order(2, 0) == order(2, 0)
    assert len({tuple(order(2, seed)) for seed in range(5)}) > 1


def test_count_that_does_not_divide_the_prompts_is_refused():
    with pytest.raises(ValueError, match="4 minibatches do not divide 6 prompts"):
        minibatches(WEIGHTS["token_mean"], batch(), 4, KEY)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("count", [1, 3])
def test_tokens_are_weighed_on_the_whole_minibatch(weights, count):
    method = WEIGHTS[weights]
    for part in minibatches(method, batch(), count, KEY):
        expected = oracles.token_weights(method, part.mask.reshape(-1, T))
        np.testing.assert_allclose(part.weights.reshape(-1, T), expected, rtol=1e-6)
        if weights in ("token_mean", "sequence_mean"):
            assert part.weights.sum() == pytest.approx(1.0, abs=1e-6)


def test_token_kl_is_the_gap_where_the_mask_is():
    """-1 + 1.5 and -2 + 1.25 at two trained tokens; the third is masked."""
    one = jax.tree.map(lambda x: np.asarray(x)[:1], batch())
    row = lambda *x: np.array([[x, (0, 0, 0, 0)]], np.float32)  # noqa: E731
    one = dataclasses.replace(
        one,
        mask=np.array([[[True, True, False, False], [False] * 4]]),
        old_logp=row(-1.0, -2.0, -9.0, 0.0),
        ref_logp=row(-1.5, -1.25, -1.0, np.nan),
    )
    np.testing.assert_allclose(token_kl(one), [[[0.5, -0.75, 0, 0], [0] * 4]], rtol=1e-6)
    np.testing.assert_allclose(mean_logp(one), [[-1.5, 0.0]], rtol=1e-6)


def test_likelihood_of_explanations_worked_example():
    """J = .12 of the group, log-probs [-1,-.5,-.3] of an explanation, beta = .05: J = .0900.

    One prompt with a sampled completion (advantage .12, ratio 1) and an explanation that has ratio
    1 too: its gradient is that of beta times the mean log-prob.
    """
    m = algo.METHODS["expo"]
    tokens = np.zeros((1, 2, 3), np.int32)
    old = np.array([[[-1, -1, -1], [-1, -0.5, -0.3]]], np.float32)
    drawn = Rollouts(
        prompts=prompts(1), tokens=tokens, mask=tokens == 0, behavior_logp=old,
        finished=np.ones((1, 2), bool),
    )  # fmt: skip
    likelihood = np.array([[0, 0.05]], np.float32)
    zeros = np.zeros((1, 2), np.int64)
    standing = Standing(
        round=zeros + 1, level=zeros, ratio=zeros, likelihood=likelihood,
        weight=np.ones((1, 2), np.float32), counted=likelihood == 0, replaced=zeros > 0,
        again=zeros > 0,
    )  # fmt: skip
    values = algo.Advantages(values=jnp.array([[0.12, 0]]), keep=jnp.ones((1, 2), bool))
    whole = with_advantages(unweighted(drawn, np.ones((1, 2), bool)), values)
    batch = with_standing(whole, standing)
    (part,) = minibatches(m, batch, 1, KEY, imitated=likelihood > 0)
    np.testing.assert_allclose(part.weights, np.full((1, 2, 3), 1 / 3))

    def objective(logp):
        rows = lambda x: jnp.asarray(x).reshape(-1, 3)  # noqa: E731
        return -algo.policy_loss(
            m, rows(logp), old_logp=rows(old), mask=rows(part.mask),
            advantages=rows(part.advantages), weights=rows(part.weights),
        )[0]  # fmt: skip

    slope = np.asarray(jax.grad(objective)(jnp.asarray(old)))
    np.testing.assert_allclose(slope[0, 1], 0.05 / 3 * np.ones(3), rtol=1e-6)
    # The value of a group is its advantage at ratio 1; of a likelihood, the log-prob itself.
    group = float(np.sum(part.weights[0, 0] * part.advantages[0, 0]))
    assert group + float(np.sum(slope[0, 1] * old[0, 1])) == pytest.approx(0.0900, abs=1e-6)


def test_completions_of_weight_zero_count_and_are_not_trained():
    given = unweighted(rollouts(), np.ones((P, G), bool))
    values = algo.Advantages(values=jnp.ones((P, G)), keep=jnp.ones((P, G), bool))
    zeros = np.zeros((P, G), np.int64)
    weight = np.where(np.arange(G) == 0, 0, 2).astype(np.float32) * np.ones((P, 1), np.float32)
    standing = Standing(
        round=zeros + 1, level=zeros, ratio=zeros, likelihood=zeros.astype(np.float32),
        weight=weight, counted=zeros == 0, replaced=zeros > 0, again=zeros > 0,
    )  # fmt: skip
    found = with_standing(with_advantages(given, values), standing)
    assert not found.mask[:, 0].any()
    np.testing.assert_array_equal(found.mask[:, 1], np.asarray(given.mask)[:, 1])
    assert (np.asarray(found.advantages)[:, 1] == 2).all()
