"""A step moves adapters alone, and as the matrices they make would move them: by the chain rule."""

import functools

import jax
import numpy as np
import pytest
from by_hand import by_hand
from lora_models import SCALE, adapted_learner, adapters, frozen
from small_models import learner, model, off_policy_batch

from jgrpo import algo
from jgrpo.models import lora


@functools.cache
def stepped(bits="none", **settings):
    """Adapters and metrics after one step of plain gradient descent."""
    one = adapted_learner(bits, **settings)
    state, metrics = one.update(one.init(adapters()), off_policy_batch())
    return jax.device_get((state.params, metrics))


def assert_close(found, expected, atol=2e-6):
    check = lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4)  # noqa: E731
    jax.tree.map(check, found, expected)


def test_gradient_is_that_of_the_merged_matrices_by_the_chain_rule():
    """W + s A B: dA = s dW B', dB = s A' dW."""
    whole = jax.device_get(lora.merged(lora.joined(frozen(), adapters())))
    one = learner("llama")
    state, metrics = one.update(one.init(whole), off_policy_batch())
    after = jax.device_get(state.params)
    moved, own = stepped()
    assert own["loss/total"] == pytest.approx(float(metrics["loss/total"]), abs=1e-6)
    for name, both in jax.device_get(adapters())["layers"].items():
        a, b = both["a"], both["b"]
        layers, rank = a.shape[0], a.shape[-1]
        slope = whole["layers"][name] - after["layers"][name]
        slope = slope.reshape(layers, a[0, ..., 0].size, -1)
        flat_a, flat_b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        of_a = SCALE * slope @ flat_b.swapaxes(1, 2)
        of_b = SCALE * flat_a.swapaxes(1, 2) @ slope
        expected = {"a": a - of_a.reshape(a.shape), "b": b - of_b.reshape(b.shape)}
        assert np.abs(of_a).max() > 1e-4
        assert_close(moved["layers"][name], expected)


@pytest.mark.parametrize("bits", ["none", "nf4"])
def test_gradient_is_the_slope_of_the_loss(bits):
    one = adapted_learner(bits)
    leaves, structure = jax.tree.flatten(jax.device_get(adapters()))
    rng = np.random.default_rng(0)
    way = [rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]

    def loss(by):
        at = [leaf + np.float32(by) * step for leaf, step in zip(leaves, way, strict=True)]
        state = one.init(jax.tree.unflatten(structure, at))
        return float(one.update(state, off_policy_batch())[1]["loss/total"])

    gradient = jax.tree.map(np.subtract, leaves, jax.tree.leaves(stepped(bits)[0]))
    expected = sum(np.sum(a * b) for a, b in zip(gradient, way, strict=True))
    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
    assert abs(expected) > 0.01
    assert slope == pytest.approx(expected, rel=0.02)


def test_an_update_leaves_the_frozen_weights_and_keeps_no_moments_of_them():
    one = adapted_learner()
    state = one.init(adapters())
    before = jax.device_get(one.frozen)
    state, _ = one.update(state, off_policy_batch())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one.frozen), before)
    sizes = [leaf.size for leaf in jax.tree.leaves(adapters())]
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) <= 3 * sum(sizes) + 4


def test_the_reference_is_the_model_without_adapters():
    method = algo.method("grpo", kl_coef=0.1)
    one = adapted_learner(method=method)
    assert one.init(adapters()).ref_params is None
    base = learner("llama").logps(model("llama")[2], off_policy_batch())
    np.testing.assert_array_equal(one.logps(None, off_policy_batch()), base)
    gap = np.abs(one.logps(adapters(), off_policy_batch()) - base)
    assert gap.max() > 0.01


@pytest.mark.parametrize("settings", [{"microbatch_completions": 4}, {"unstack": True}])
def test_a_step_is_the_same_however_it_is_computed(settings):
    assert_close(stepped(**settings), stepped())


@pytest.mark.parametrize(
    ("fsdp", "bits"),
    [
        *((1, "none"), (4, "int8"), (8, "nf4")),
        *(by_hand(f, b) for f, b in ((1, "int8"), (1, "nf4"), (4, "none"), (4, "nf4"))),
        *(by_hand(8, "none"), by_hand(8, "int8")),
    ],
)
def test_a_step_is_the_same_on_every_mesh(fsdp, bits):
    assert_close(stepped(bits, devices=8, fsdp=fsdp), stepped(bits))
