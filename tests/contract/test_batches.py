"""What padding, number types, tracing and devices may not change, for every row of METHODS."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles_rows as rows
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jgrpo.algo import METHODS, Side, advantages, init_state, needs, policy_loss, token_weights
from jgrpo.algo.posts import POSTS

F = np.float32
B, T, P, G = 8, 5, 8, 4
every = pytest.mark.parametrize("name", METHODS)


def completions(seed=0):
    """Arguments of `policy_loss` by name, with an empty row; logp first."""
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=(B, T)).astype(F)
    near = lambda size: (old + size * draw.normal(size=old.shape)).astype(F)  # noqa: E731
    return {
        "logp": near(0.3),
        "old_logp": old,
        "ref_logp": near(0.2),
        "behavior_logp": near(0.1),
        "advantages": draw.normal(size=(B, 1)).astype(F) * np.ones((1, T), F),
        "mask": np.arange(T) < np.array([5, 3, 0, 1, 4, 2, 5, 3])[:, None],
        "segments": draw.integers(0, 3, (B, T)),
    }


def value_and_grad(m, data, weights=None):
    rest = {name: x for name, x in data.items() if name != "logp"}
    loss = lambda x: policy_loss(m, x, **rest, weights=weights)[0]  # noqa: E731
    return jax.value_and_grad(loss)(data["logp"])


def padded(x, before, after, below):
    """Columns before and after, and rows below, of what could do most harm."""
    fill = False if x.dtype == bool else np.nan if x.dtype == F else 7
    return np.pad(x, ((0, below), (before, after)), constant_values=fill)


@every
def test_padding_on_every_side_changes_neither_value_nor_gradient(name):
    """The weights are those of the rows alone: with more rows the batch would be another one."""
    m, data = METHODS[name], completions()
    weights = np.asarray(token_weights(m, data["mask"]))
    loss, slope = value_and_grad(m, data, weights)
    wide = {key: padded(x, 1, 2, 4) for key, x in (data | {"weights": weights}).items()}
    found, gradient = value_and_grad(m, wide, wide.pop("weights"))
    np.testing.assert_allclose(found, loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient[:B, 1 : 1 + T], slope, rtol=1e-6, atol=1e-7)
    assert not np.any(gradient[~wide["mask"]])


def groups(name, seed=2):
    """Rewards, side information and state of eight groups of four."""
    m, draw = METHODS[name], np.random.default_rng(seed)
    count = rows.COLUMNS.get(name)
    rewards = draw.integers(0, 5, (P, G, count) if count else (P, G)).astype(F) / 4
    quarters = lambda *shape: draw.integers(-8, 9, shape).astype(F) / 4  # noqa: E731
    side = Side(
        lengths=draw.integers(1, T + 1, (P, G)),
        max_completion_tokens=T,
        step=np.zeros((), np.int32),
        sequence_kl=quarters(P, G),
        valid=draw.random((P, G)) < 0.9,
        mean_logp=quarters(P, G),
        strata=draw.integers(0, 2, (P, G)),
        reference=np.arange(G) * np.ones((P, 1)) == 1,
        prompt_ids=np.arange(P),
        prior=quarters(P),
        drift=np.zeros(P, F),
        mask=np.arange(T) < draw.integers(1, T + 1, (P, G, 1)),
        tokens=draw.integers(0, 2, (P, G, T)),
        token_kl=quarters(P, G, T),
        values=quarters(P, G, T),
        segments=draw.integers(-1, 4, (P, G, T)),
        prefix_scores=quarters(P, G, T),
        answer_logp=quarters(P, G) - 2,
        truncated=draw.random((P, G)) < 0.5,
        non_incorrect=draw.random((P, G)) < 0.8,
        repeats=draw.random((P, G)) < 0.2,
        skilled=draw.random((P, G)) < 0.5,
        chance=draw.integers(0, 4, (P, G)).astype(F) / 4,
    )
    return m, rewards, side, init_state(m, num_prompts=P)


def changed(side, function):
    """The side information with a function of each array."""
    arrays = {f.name: getattr(side, f.name) for f in dataclasses.fields(side)}
    arrays = {n: function(x) for n, x in arrays.items() if isinstance(x, np.ndarray)}
    return dataclasses.replace(side, **arrays)


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if "mask" in needs(m)])
def test_longer_arrays_of_tokens_change_no_advantage(name):
    m, rewards, side, state = groups(name)
    alone = np.asarray(advantages(m, rewards, side, state).values)
    longer = lambda x: (  # noqa: E731
        np.pad(x, ((0, 0), (0, 0), (0, 3)), constant_values=False if x.dtype == bool else 9)
        if x.ndim == 3
        else x
    )
    got = np.asarray(advantages(m, rewards, changed(side, longer), state).values)
    assert not got[:, T:].any()
    np.testing.assert_allclose(got[:, :T], alone, rtol=1e-6, atol=1e-6)


@every
def test_bfloat16_rewards_and_facts_are_reduced_in_float32(name):
    """Quarters are exact in both types; statistics in bfloat16 would be off by 1e-2."""
    m, rewards, side, state = groups(name)
    narrow = lambda x: jnp.asarray(x, jnp.bfloat16) if x.dtype == F else x  # noqa: E731
    found = advantages(m, narrow(rewards), changed(side, narrow), state)
    assert found.values.dtype == jnp.float32
    expected = advantages(m, rewards, side, state).values
    np.testing.assert_allclose(found.values, expected, rtol=1e-6, atol=1e-6)


@every
def test_everything_may_be_traced_at_once(name):
    """Rewards, facts and state, then the loss and its gradient: no value is looked at in Python."""
    m, rewards, side, state = groups(name)
    data = completions()

    def advantage(*given):
        found = advantages(m, *given)
        assert jax.tree.structure(found.state) == jax.tree.structure(state)
        return found.values, found.keep

    with jax.checking_leaks():
        values, keep = jax.eval_shape(advantage, rewards, side, state)
        loss, slope = jax.eval_shape(lambda x: value_and_grad(m, x), data)
    assert (keep.shape, loss.shape, slope.shape) == ((P, G), (), (B, T))
    by_token = "mask" in POSTS[m.post].needs
    assert values.shape == ((P * G, T) if by_token else (P, G))
    assert {x.dtype for x in (values, loss, slope)} == {np.dtype(F)}


def test_groups_on_eight_devices_get_the_advantages_of_one_device():
    """All rows in one program; what is of the whole batch must not become a device's own."""
    given = {name: groups(name)[1:] for name in METHODS}

    @jax.jit
    def compute(given):
        return {name: advantages(METHODS[name], *each).values for name, each in given.items()}

    expected = jax.device_get(compute(given))
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    spread = lambda x: jax.device_put(x, sharding) if np.shape(x)[:1] == (P,) else x  # noqa: E731
    got = compute(jax.tree.map(spread, given))
    assert len(got["grpo"].sharding.device_set) == 8
    for name, values in jax.device_get(got).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
