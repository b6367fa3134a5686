"""What the loss must do for every trust x level x weights, and for every row on several devices.

Weights are arrays to the loss, so each pair of level and trust is compiled once, and runs all
weights and all scenarios at once. Test functions look at the scenarios that they are about.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jgrpo.algo import METHODS, policy_loss, token_weights
from jgrpo.algo.methods import SLOTS

B, T = 8, 6
LENGTHS = np.array([6, 5, 1, 0, 6, 3, 4, 2])
MASK = np.arange(T) < LENGTHS[:, None]
SEGMENTS = np.arange(T) // 2 * np.ones((B, 1), int)
ORDER = np.random.default_rng(3).permutation(B)
PLAIN = dataclasses.replace(
    METHODS["grpo"], penalty="none", kl_coef=0.0, clip_high=0.28, dual_clip=3.0,
    constant_length_tokens=T,
)  # fmt: skip
WEIGHTS = {
    name: np.asarray(token_weights(dataclasses.replace(PLAIN, weights=name), MASK))
    for name in SLOTS["weights"]
}
PAIRS = list(itertools.product(SLOTS["level"], SLOTS["trust"]))
pairs = pytest.mark.parametrize(("level", "trust"), PAIRS)
# This level has no gradient, so neither have trust regions that look at the ratio alone.
WITHOUT_GRADIENT = {("sequence_sum", trust) for trust in ("clip", "gmpo", "sapo", "ctpo")}


def drawn(seed=0, spread=0.3):
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=(B, T)).astype(np.float32)
    logp = (old + spread * draw.normal(size=(B, T))).astype(np.float32)
    return logp, old, draw.normal(size=B).astype(np.float32), MASK, SEGMENTS


def scenarios():
    """Name to (logp, old, advantages, mask, segments); parts have the mask of their rows alone."""
    logp, old, adv, mask, segments = base = drawn()
    spoiled = [np.where(mask, x, np.nan).astype(np.float32) for x in (logp, old)]
    part = lambda rows: mask & (np.arange(B) // 3 == rows)[:, None]  # noqa: E731
    return {
        "base": base,
        "padding of nan": (*spoiled, adv, mask, segments),
        "no advantage": (logp, old, np.zeros_like(adv), mask, segments),
        "ratio one": (old, old, adv, mask, segments),
        "shuffled": tuple(x[ORDER] for x in base),
        "extreme": drawn(1, spread=50.0),
        **{f"part {i}": (logp, old, adv, part(i), segments) for i in range(3)},
    }


def loss_of(level, trust, logp, old, adv, mask, segments, weights):
    m = dataclasses.replace(PLAIN, level=level, trust=trust)
    return policy_loss(
        m, logp, old_logp=old, mask=mask, advantages=adv, segments=segments, weights=weights
    )[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_grad(level, trust, data, weights):
    """Of all scenarios [S] and weights [W]: losses [S, W], gradients [S, W, B, T]."""
    loss = functools.partial(loss_of, level, trust)
    each = jax.vmap(jax.value_and_grad(loss), in_axes=(None, None, None, None, None, 0))
    return jax.vmap(each)(*data, weights)


@functools.cache
def results(level, trust):
    """Scenario to (losses by weights, gradients by weights)."""
    every = scenarios()
    data = [np.stack(arrays) for arrays in zip(*every.values(), strict=True)]
    weights = np.stack(list(WEIGHTS.values()))
    in_order = weights[:, ORDER]
    given = np.stack([in_order if name == "shuffled" else weights for name in every])
    losses, slopes = jax.device_get(value_and_grad(level, trust, data, given))
    return {name: (losses[i], slopes[i]) for i, name in enumerate(every)}


@pairs
def test_values_and_gradients_are_finite_and_zero_on_padding(level, trust):
    for name, (losses, slopes) in results(level, trust).items():
        assert np.isfinite(losses).all(), name
        assert np.isfinite(slopes).all(), name
    losses, slopes = results(level, trust)["padding of nan"]
    assert not slopes[:, ~MASK].any()
    np.testing.assert_array_equal(losses, results(level, trust)["base"][0])
    np.testing.assert_array_equal(slopes, results(level, trust)["base"][1])


@pairs
def test_no_advantage_means_no_gradient(level, trust):
    losses, slopes = results(level, trust)["no advantage"]
    assert not losses.any()
    assert not slopes.any()


@pairs
def test_ratio_one_gives_weighted_reinforce(level, trust):
    _, slopes = results(level, trust)["ratio one"]
    adv = drawn()[2]
    for (name, weights), slope in zip(WEIGHTS.items(), slopes, strict=True):
        gradient = 0 * weights if (level, trust) in WITHOUT_GRADIENT else -weights * adv[:, None]
        np.testing.assert_allclose(slope, gradient, rtol=1e-5, atol=1e-7, err_msg=name)


@pairs
def test_order_of_rows_does_not_matter_and_parts_add_up(level, trust):
    found = results(level, trust)
    losses, slopes = found["base"]
    scale = np.maximum(1.0, np.abs(slopes).max(axis=(1, 2)))
    for name, (value, slope) in {
        "shuffled": (found["shuffled"][0], found["shuffled"][1][:, np.argsort(ORDER)]),
        "parts": tuple(sum(found[f"part {i}"][k] for i in range(3)) for k in (0, 1)),
    }.items():
        np.testing.assert_allclose(value, losses, rtol=1e-6, atol=2e-6 * scale.max(), err_msg=name)
        np.testing.assert_allclose(slope, slopes, rtol=1e-6, atol=1e-6 * scale.max(), err_msg=name)


@pairs
def test_other_data_of_the_same_shape_compile_nothing(level, trust):
    results(level, trust)
    before = value_and_grad._cache_size()
    every = [drawn(seed) for seed in range(len(scenarios()))]
    data = [np.stack(arrays) for arrays in zip(*every, strict=True)]
    weights = np.stack([np.stack(list(WEIGHTS.values()))] * len(every))
    value_and_grad(level, trust, data, weights)
    assert value_and_grad._cache_size() == before


@pytest.mark.parametrize("level", SLOTS["level"])
def test_compositions_on_eight_devices_give_what_they_give_on_one(level):
    """All trusts of a level in one program, with all weights; a device has one row."""
    names = list(SLOTS["trust"])

    @jax.jit
    def together(data, weights):
        return {
            trust: jax.vmap(jax.value_and_grad(functools.partial(loss_of, level, trust)),
                            in_axes=(None,) * 5 + (0,))(*data, weights)
            for trust in names
        }  # fmt: skip

    mesh = Mesh(np.array(jax.devices()), ("data",))
    put = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: E731
    data = [put(x, "data") for x in drawn()]
    got = together(data, put(np.stack(list(WEIGHTS.values())), None, "data"))
    assert len(got["clip"][1].sharding.device_set) == 8
    for trust, (losses, slopes) in jax.device_get(got).items():
        expected, gradients = results(level, trust)["base"]
        scale = max(1.0, np.abs(gradients).max())
        for ours, theirs in ((losses, expected), (slopes, gradients)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * scale, err_msg=trust)


def test_rows_on_eight_devices_give_what_they_give_on_one():
    """Losses and gradients of every kind of row, in one program; weights are the whole batch's."""
    logp, old, adv, mask, segments = drawn()
    per_token = adv[:, None] * np.ones((1, T), np.float32)
    slots = ("level", "trust", "veto", "correction", "penalty", "kl_in")
    # Rows of equal loss slots are one program but for constants: the first stands for them.
    kinds = {tuple(getattr(m, s) for s in slots): n for n, m in reversed(METHODS.items())}
    rows = {name: dataclasses.replace(METHODS[name], late="none") for name in kinds.values()}
    weights = {name: token_weights(m, mask) for name, m in rows.items()}

    @jax.jit
    def both(logp, old, per_token, mask, segments, weights):
        def loss(x, m, w):
            return policy_loss(
                m, x, old_logp=old, mask=mask, advantages=per_token, segments=segments,
                ref_logp=old - 0.1, behavior_logp=old + 0.05, weights=w,
            )[0]  # fmt: skip

        return {name: jax.value_and_grad(loss)(logp, m, weights[name]) for name, m in rows.items()}

    data = (logp, old, per_token, mask, segments, weights)
    expected = jax.device_get(both(*data))
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    spread = jax.tree.map(lambda x: jax.device_put(jnp.asarray(x), sharding), data)
    got = both(*spread)
    assert len(got["grpo"][1].sharding.device_set) == 8
    for name, (loss, slope) in jax.device_get(got).items():
        scale = max(1.0, np.abs(expected[name][1]).max())
        np.testing.assert_allclose(
            loss, expected[name][0], rtol=1e-6, atol=1e-6 * scale, err_msg=name
        )
        np.testing.assert_allclose(
            slope, expected[name][1], rtol=1e-6, atol=1e-6 * scale, err_msg=name
        )
