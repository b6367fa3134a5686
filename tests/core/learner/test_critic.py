"""The critic reads the policy's states, learns its targets, and adds up like the policy's loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import by_hand
from oracles_family import gae
from small_models import completed, learner, model, prompts

from jgrpo import algo
from jgrpo.config import OptimConfig
from jgrpo.learner.batch import explained_variance, minibatches, unweighted, with_advantages
from jgrpo.learner.critic import VALUE_HEAD
from jgrpo.learner.forward import completion_hidden
from jgrpo.learner.heads import trained_of
from jgrpo.learner.optim import make_optimizer
from jgrpo.types import Batch

P, G, T = 8, 2, 6
PPO = algo.method("ppo_clip", kl_coef=0.0, value_coef=0.5, gamma=0.9, gae_lambda=0.8)


def with_head(state):
    """The state with a critic that has learned something."""
    head = state.aux[VALUE_HEAD]
    rng = np.random.default_rng(7)
    noisy = {
        name: jax.device_put((0.3 * rng.normal(size=x.shape)).astype(np.float32), x.sharding)
        for name, x in head.items()
    }
    return dataclasses.replace(state, aux={**state.aux, VALUE_HEAD: noisy})


def fresh(**settings):
    one = learner(method=PPO, **settings)
    return one, with_head(one.init(model()[2]))


@functools.cache
def batch() -> Batch:
    """Advantages and targets as a run makes them; old values and log-probs a little off."""
    one, state = fresh()
    plain = unweighted(completed(prompts(P), G, T), np.ones((P, G), bool))
    facts = jax.device_get(one.facts(state, plain))
    rng = np.random.default_rng(3)
    near = lambda x, d: np.where(plain.mask, x + d * rng.normal(size=x.shape), 0).astype("f4")  # noqa: E731
    plain = dataclasses.replace(
        plain, old_logp=near(facts.logp, 0.2), old_values=near(facts.values, 0.2)
    )
    rewards = rng.integers(0, 2, (P, G)).astype(np.float32)
    side = algo.Side(mask=np.asarray(plain.mask), values=plain.old_values)
    found = with_advantages(plain, algo.advantages(PPO, rewards, side))
    return minibatches(PPO, found, 1, jax.random.key(0))[0]


def stepped(data, **settings):
    """Everything trained, and the metrics, after one step of plain gradient descent."""
    one, state = fresh(**settings)
    state, metrics = one.update(state, data)
    return jax.device_get((trained_of(state, [VALUE_HEAD]), metrics))


@functools.cache
def whole_step():
    return stepped(batch())


def hidden(params):
    data = batch()
    found, *_ = completion_hidden(model()[1], params, data.prompts, jnp.asarray(data.tokens))
    return np.asarray(found, np.float64)


def loss_by_loops(values, data):
    """The value term and its slope at each value, a token at a time, in float64."""
    loss, slope = 0.0, np.zeros(values.shape)
    for i in np.argwhere(data.mask):
        at = tuple(i)
        old, goal, weight = (
            float(np.asarray(x)[at]) for x in (data.old_values, data.returns, data.weights)
        )
        v = values[at]
        near = min(max(v, old - PPO.value_clip), old + PPO.value_clip)
        free, held = (v - goal) ** 2, (near - goal) ** 2
        loss += PPO.value_coef * weight * 0.5 * max(free, held)
        if free >= held or near == v:
            slope[at] = PPO.value_coef * weight * (v - goal)
    return loss, slope


def test_values_are_a_linear_read_out_of_the_states_that_predict_the_tokens():
    one, state = fresh()
    head = jax.device_get(state.aux[VALUE_HEAD])
    expected = hidden(state.params) @ head["weight"].astype(np.float64) + head["bias"]
    np.testing.assert_allclose(one.facts(state, batch()).values, expected, atol=1e-5)


def test_a_new_critic_predicts_zero_and_facts_agree_with_log_probs():
    one = learner(method=PPO)
    state = one.init(model()[2])
    facts = one.facts(state, batch())
    assert not np.any(facts.values)
    np.testing.assert_array_equal(facts.logp, one.logps(state.params, batch()))


def test_targets_are_those_of_the_loops():
    data = batch()
    whitened = np.asarray(data.advantages)[np.asarray(data.mask)]
    assert abs(whitened.mean()) < 1e-5
    side = algo.Side(mask=np.asarray(data.mask), values=data.old_values)
    rewards = np.random.default_rng(5).normal(size=(P, G)).astype(np.float32)
    found = np.asarray(algo.advantages(PPO, rewards, side).returns).reshape(P, G, T)
    for p, g in np.ndindex(P, G):
        n = int(data.mask[p, g].sum())
        values = np.asarray(data.old_values[p, g, :n], np.float64)
        each = np.zeros(n)
        each[-1] = rewards[p, g]
        expected = gae(each, values, PPO.gamma, PPO.gae_lambda) + values
        np.testing.assert_allclose(found[p, g, :n], expected, atol=1e-6)
        assert not found[p, g, n:].any()


def test_loss_and_gradient_of_the_critic_are_those_of_the_loops():
    _, state = fresh()
    head, states = jax.device_get(state.aux[VALUE_HEAD]), hidden(state.params)
    values = states @ head["weight"].astype(np.float64) + head["bias"]
    expected, slope = loss_by_loops(values, batch())
    assert (np.abs(values - batch().old_values)[batch().mask] > PPO.value_clip).any()
    trained, metrics = whole_step()
    np.testing.assert_allclose(metrics["loss/value"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        head["weight"] - trained[VALUE_HEAD]["weight"],
        np.einsum("pgt,pgtd->d", slope, states),
        atol=2e-6,
    )
    np.testing.assert_allclose(head["bias"] - trained[VALUE_HEAD]["bias"], slope.sum(), atol=2e-6)
    error = np.where(batch().mask, (values - batch().returns) ** 2, 0).sum() / batch().mask.sum()
    np.testing.assert_allclose(metrics["value/squared_error"], error, rtol=1e-5)


def test_loss_of_the_critic_shapes_the_policys_layers():
    """Without advantages only the critic's loss moves the policy, and along its own slope."""
    silent = dataclasses.replace(batch(), advantages=np.zeros(batch().mask.shape, np.float32))
    _, state = fresh()
    before, head = jax.device_get((state.params, state.aux[VALUE_HEAD]))
    after = {k: x for k, x in stepped(silent)[0].items() if k != VALUE_HEAD}
    gradient = jax.tree.map(lambda old, new: old - new, before, after)
    direction = jax.tree.map(
        lambda x: np.random.default_rng(x.size).standard_normal(x.shape).astype(np.float32), before
    )

    def loss(distance):
        params = jax.tree.map(lambda x, d: x + np.float32(distance) * d, before, direction)
        return loss_by_loops(hidden(params) @ head["weight"].astype(np.float64) + head["bias"],
                             silent)[0]  # fmt: skip

    slope = (loss(1e-4) - loss(-1e-4)) / 2e-4
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
    assert abs(slope) > 1e-2
    assert along == pytest.approx(slope, rel=3e-2)


@pytest.mark.parametrize(
    ("devices", "fsdp", "size"),
    [(1, 1, 4), (8, 2, 1), by_hand(1, 1, 1), by_hand(8, 1, 0), by_hand(8, 2, 0)],
)
def test_microbatches_and_devices_give_the_update_of_the_whole(devices, fsdp, size):
    got = stepped(batch(), devices=devices, fsdp=fsdp, microbatch_completions=size)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5), got, whole_step()
    )


def test_values_do_not_depend_on_microbatches_or_devices():
    one, state = fresh()
    many, placed = fresh(devices=8, fsdp=2, microbatch_completions=1)
    expected = one.facts(state, batch()).values
    np.testing.assert_allclose(many.facts(placed, batch()).values, expected, atol=1e-5)


def test_optimizer_keeps_moments_of_the_critic_split_as_its_weights():
    adam = make_optimizer(OptimConfig(lr=1e-2), 10)
    one, state = fresh(optimizer=adam, devices=8, fsdp=2)
    before = jax.device_get(state.aux)
    for _ in range(2):
        state, metrics = one.update(state, batch())
        assert metrics["optim/skipped_updates"] == 0
    assert one._jitted_update._cache_size() == 1
    moments = state.opt_state[1][0].mu[VALUE_HEAD]
    for leaf in (moments["weight"], state.aux[VALUE_HEAD]["weight"]):
        assert leaf.addressable_shards[0].data.size == leaf.size // 2
    assert np.abs(jax.device_get(state.aux)[VALUE_HEAD]["weight"]
                  - before[VALUE_HEAD]["weight"]).max() > 1e-3  # fmt: skip


def test_tokens_outside_the_mask_have_no_influence_on_the_critic():
    data = batch()
    spoiled = {
        name: np.where(data.mask, getattr(data, name), np.float32(np.nan))
        for name in ("returns", "old_values")
    }
    got = stepped(dataclasses.replace(data, **spoiled))
    jax.tree.map(np.testing.assert_array_equal, got, whole_step())


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one():
    data = batch()
    assert explained_variance(dataclasses.replace(data, old_values=data.returns)) == 1.0
    flat = dataclasses.replace(data, old_values=np.ones(data.mask.shape, np.float32))
    assert explained_variance(flat) == pytest.approx(0.0, abs=1e-12)
    flat = dataclasses.replace(data, returns=np.ones(data.mask.shape, np.float32))
    assert explained_variance(flat) == 0.0


def test_value_loss_without_a_bound_is_the_squared_error():
    arrays = {"old_values": np.zeros((1, 2)), "returns": np.ones((1, 2))}
    weights = np.array([[0.5, 0.5]])
    free = algo.value_loss(np.array([[3.0, 1.0]]), weights=weights, value_clip=0.0, **arrays)
    assert float(free) == 1.0
    # Worked by hand: max((0.9 - 1)^2, (0.2 - 1)^2) / 2 / 2 for the first token.
    held = algo.value_loss(np.array([[0.9, 0.1]]), weights=weights, value_clip=0.2, **arrays)
    assert float(held) == pytest.approx((0.64 + 0.81) / 4)
