"""Minibatches partition the prompts, and everything batch-scoped is fixed on whole minibatches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from small_models import prompts

from jgrpo import algo
from jgrpo.learner.batch import mean_logp, minibatches, token_kl, unweighted, with_advantages
from jgrpo.types import Rollouts

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
