"""Every row against the loops of oracles_rows.py: its advantages, and the gradient of its loss.

To 1e-6 of the largest value, in float32. The gradients are central differences in float64; a
stop-gradient is held at its value at the point (`oracles.held`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_rows as rows
import pytest

from jgrpo.algo import (
    METHODS,
    Side,
    advantages,
    constraint_scale,
    init_state,
    late_advantages,
    method,
    needs,
    policy_loss,
)
from jgrpo.algo.trackers import BetaTracker

F = np.float32
BINARY = ("xrpo", "weighted_grpo", "disco", "drpo", "grpo_lambda", "format_length", "c_grpo")
SMALL = {name: {"overlong_buffer_tokens": 4} for name in ("dapo", "cispo")}
SMALL |= {name: {"constant_length_tokens": 5} for name in ("dr_grpo", "prioritized_replay")}
SMALL["arise"] = {"skill_start_steps": 0}
SMALL["train_long_think_short"] = {"budget_start_tokens": 8}


def side(f):
    """The batch as the package takes it."""
    narrow = lambda x: x.astype(F if x.dtype == np.float64 else x.dtype)  # noqa: E731
    own = {field.name for field in dataclasses.fields(Side)} & set(f.__dict__)
    return Side(
        **{name: narrow(getattr(f, name)) for name in own},
        max_completion_tokens=rows.WIDTH,
        prompt_ids=np.arange(rows.P),
        drift=np.zeros(rows.P, F),
        step=np.zeros((), np.int32),
    )


def state_of(m, f):
    if m.tracker == "beta":
        return BetaTracker(alpha=f.alpha.astype(F), beta=f.beta.astype(F))
    return init_state(m, num_prompts=rows.P)


@functools.partial(jax.jit, static_argnums=0)
def compiled(m, rewards, extra, state):
    return advantages(m, rewards, extra, state).values


def agree(got, expected, name="", rtol=1e-6):
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-6 * scale, err_msg=name)


def test_no_row_is_missing():
    assert set(rows.ADVANTAGES) == set(METHODS)
    assert set(rows.LATE) == {name for name, m in METHODS.items() if m.late != "none"}
    assert {name for name in METHODS if "columns" in needs(METHODS[name])} <= set(rows.COLUMNS)


@pytest.mark.parametrize("name", METHODS)
def test_advantages_of_every_row_agree_with_the_loops(name):
    m = method(name, **SMALL.get(name, {}))
    for seed in range(4):
        f = rows.facts(seed, binary=name in BINARY)
        count = rows.COLUMNS.get(name)
        rewards = f.columns[..., :count] if count else f.rewards
        got = compiled(m, rewards.astype(F), side(f), state_of(m, f))
        agree(got, rows.ADVANTAGES[name](f), f"{name}, seed {seed}")


def log_probs(seed, spread=0.3):
    """Sixteenths, so that log-ratios are exact; an empty row."""
    draw = np.random.default_rng(seed)
    shape = (8, 5)
    old = -draw.integers(1, 32, shape) / 16
    logp = old + np.round(16 * spread * draw.normal(size=shape)) / 16
    mask = np.arange(5) < np.array([5, 3, 0, 1, 4, 2, 5, 3])[:, None]
    ref, behavior = (old + draw.integers(-8, 9, shape) / 16 for _ in range(2))
    per_row = draw.integers(-16, 17, (8, 1)) / 8
    segments = draw.integers(-1, 3, shape)
    return logp, old, mask, per_row * np.ones(shape), ref, segments, behavior


@pytest.mark.parametrize("name", METHODS)
def test_gradient_of_every_row_is_that_of_finite_differences(name):
    """Of the loss over given advantages; what couples rows is the next test's."""
    m = method(name, late="none", constraint="none", **SMALL.get(name, {}))
    logp, old, mask, per_token, ref, segments, behavior = log_probs(7)
    with oracles.held():
        value = lambda x: oracles.policy_value(  # noqa: E731
            m, x, old, mask, per_token, ref, segments, behavior
        )
        expected_loss = value(logp)
        expected = rows.finite_differences(value, logp, mask)
    narrow = lambda x: x.astype(F)  # noqa: E731
    loss, slope = jax.value_and_grad(
        lambda x: policy_loss(
            m, x, old_logp=narrow(old), mask=mask, advantages=narrow(per_token),
            ref_logp=narrow(ref), segments=segments, behavior_logp=narrow(behavior),
        )[0]
    )(narrow(logp))  # fmt: skip
    agree(loss, expected_loss, name)
    agree(slope, expected, name)
    assert name == "vespo" or np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("name", rows.LATE)
def test_gradient_of_coupled_rows_is_that_of_finite_differences(name):
    """Two groups of four, an empty row, the constraint included; labels are 0 and 1."""
    m = METHODS[name]
    logp, old, mask, *_ = log_probs(3, spread=0.1)
    if m.constraint != "none":  # most tokens lose probability, so that the constraint acts
        logp = logp - 0.125
    targets = np.array([[1, 0, 1, 0], [0, 0, 1, 1]], np.float64)
    if name == "reg_grpo":
        targets = rows.z(targets)
    groups = lambda x: x.reshape(2, 4, 5)  # noqa: E731
    both = lambda x: rows.LATE[name](groups(x), groups(old), groups(mask), targets)  # noqa: E731
    bound = (lambda x: rows.hinge(x, old, mask)) if m.constraint != "none" else lambda x: 0.0
    expected = rows.finite_differences(lambda x: both(x) + bound(x), logp, mask)
    now, then = logp.astype(F), old.astype(F)
    values, loss = late_advantages(m, now, old_logp=then, mask=mask, targets=targets.astype(F))
    scale = constraint_scale(m, now, old_logp=then, mask=mask)
    slope = jax.grad(
        lambda x: policy_loss(
            m, x, old_logp=then, mask=mask, advantages=values, constraint_scale=scale
        )[0]
    )(jnp.asarray(now))
    agree(loss, both(logp), name)
    agree(slope, expected, name)
    assert m.constraint == "none" or bound(logp) > 1
