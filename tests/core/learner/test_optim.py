"""Schedules at points worked out by hand; what is decayed, what is clipped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import CONFIGS, model

from jgrpo.config import OptimConfig
from jgrpo.learner.optim import learning_rate, make_optimizer, updates_per_step


def rates(cfg, steps, counts):
    schedule = learning_rate(cfg, steps)
    return np.array([schedule(count) for count in counts])


def test_warmup_begins_with_its_first_part_and_reaches_the_peak_with_its_last():
    """Four updates of warm-up to 0.8: 0.2, 0.4, 0.6, 0.8, and 0.8 from then on."""
    got = rates(OptimConfig(lr=0.8, warmup_steps=4), 10, range(6))
    np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-6)


def test_warmup_of_one_update_is_the_peak_at_once():
    np.testing.assert_allclose(rates(OptimConfig(lr=0.8, warmup_steps=1), 10, (0, 1, 2)), 0.8)


def test_warmup_and_decay_count_steps_not_updates():
    """Two epochs of three minibatches: six updates a step, hence 12 of warm-up and 24 in all."""
    cfg = OptimConfig(lr=1.2, warmup_steps=2, epochs_per_step=2, minibatches=3, schedule="linear")
    assert updates_per_step(cfg) == 6
    got = rates(cfg, 4, (0, 5, 11, 12, 18, 24))
    np.testing.assert_allclose(got, [0.1, 0.6, 1.2, 1.2, 0.6, 0.0], atol=1e-6)


def test_linear_decay_ends_at_the_final_ratio():
    """From 1 to 0.2 over 8 updates: 0.1 an update."""
    got = rates(OptimConfig(lr=1.0, schedule="linear", final_lr_ratio=0.2), 8, (0, 1, 4, 8, 9))
    np.testing.assert_allclose(got, [1.0, 0.9, 0.6, 0.2, 0.2], rtol=1e-6)


def test_cosine_decay_ends_at_the_final_ratio():
    """The rate is lr ((1 - r) (1 + cos(pi n / 8)) / 2 + r): at half time (1 + r) / 2."""
    cfg = OptimConfig(lr=2.0, schedule="cosine", final_lr_ratio=0.1, warmup_steps=2)
    got = rates(cfg, 10, (0, 1, 2, 6, 10, 11))
    np.testing.assert_allclose(got, [1.0, 2.0, 2.0, 1.1, 0.2, 0.2], rtol=1e-6)


def test_a_warmup_longer_than_the_run_is_finite():
    cfg = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=9)
    np.testing.assert_allclose(rates(cfg, 3, (0, 8)), [1 / 9, 1.0], rtol=1e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_weight_decay_skips_norms_and_biases_and_nothing_else(family):
    """Without a gradient, AdamW is the decay alone: p (1 - lr weight_decay)."""
    _, _, params = model(family)
    optimizer = make_optimizer(OptimConfig(lr=0.5, weight_decay=0.1), 10)

    @jax.jit
    def update(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optimizer.update(zeros, optimizer.init(params), params)[0]

    updates = update(params)
    for path, update in jax.tree.leaves_with_path(updates):
        name = path[-1].key
        leaf = params["layers"][name] if len(path) == 2 else params[name]
        factor = 0.0 if "norm" in name or "bias" in name else 0.05
        np.testing.assert_allclose(update, -factor * leaf, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(("clip_norm", "scale"), [(1.0, 0.2), (10.0, 1.0)])
def test_gradient_above_the_norm_is_scaled_down_and_below_is_kept(clip_norm, scale):
    """The norm of (3, 4) is 5. With beta1 = 0 the first moment is the gradient after the clip."""
    optimizer = make_optimizer(OptimConfig(clip_norm=clip_norm, beta1=0.0), 10)
    params = {"q": jnp.ones(2)}
    _, state = optimizer.update({"q": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    moment = optax.tree_utils.tree_get(state, "mu")["q"]
    np.testing.assert_allclose(moment, scale * np.array([3.0, 4.0]), rtol=1e-6)


def test_adamw_reads_its_constants_from_the_config():
    """One update of gradient g = 0.5: mu = (1 - b1) g, nu = (1 - b2) g^2, p -= lr g / (g + eps)."""
    cfg = OptimConfig(lr=0.1, beta1=0.8, beta2=0.9, eps=0.5)
    optimizer, params = make_optimizer(cfg, 10), {"q": jnp.ones(1)}
    updates, state = optimizer.update({"q": jnp.full(1, 0.5)}, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "mu")["q"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "nu")["q"], 0.025, rtol=1e-6)
    np.testing.assert_allclose(updates["q"], -0.1 * 0.5 / (0.5 + 0.5), rtol=1e-6)
