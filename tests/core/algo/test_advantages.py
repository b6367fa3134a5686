import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jgrpo.algo import METHODS, Side, advantages, method

# The printed digits of the worked examples.
DIGITS = 6e-7
GRPO, DR_GRPO = METHODS["grpo"], METHODS["dr_grpo"]
RLOO = method("rloo", penalty="none")
# Multiples of 1/8 are exact in float32, and so are their sums.
exact = st.integers(-16, 16).map(lambda n: n / 8)
groups = arrays(np.float32, st.sampled_from([(1, 1), (1, 2), (2, 4), (3, 5)]), elements=exact)


@functools.partial(jax.jit, static_argnums=0)
def _values(m, rewards, side):
    return advantages(m, rewards, side).values


def values(m, rewards, side=None):
    """Compiled whole: for many shapes that is faster than one operation at a time."""
    return np.asarray(_values(m, np.asarray(rewards, np.float32), side))


@pytest.mark.parametrize(
    ("m", "expected"),
    [
        (GRPO, [[1.499997, -0.499999, -0.499999, -0.499999],
                [0.499999, 0.499999, 0.499999, -1.499997]]),
        (DR_GRPO, [[0.75, -0.25, -0.25, -0.25], [0.25, 0.25, 0.25, -0.75]]),
        (RLOO, [[1, -0.333333, -0.333333, -0.333333], [0.333333, 0.333333, 0.333333, -1]]),
    ],
    ids=["grpo", "dr_grpo", "rloo"],
)  # fmt: skip
def test_worked_example_fb(m, expected):
    np.testing.assert_allclose(values(m, oracles.FB), expected, atol=DIGITS)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "gspo"])
@pytest.mark.parametrize("constant", [0.1, 0.3, 1e-8, 12345.678])
def test_constant_group_gets_exactly_zero(name, constant):
    """In floats the mean of 0.1, 0.1, 0.1 is not 0.1; no eps may hide that."""
    m = method(name, penalty="none", scale_eps=0.0)
    for size in (2, 3, 7):
        assert np.array_equal(values(m, np.full((1, size), constant)), np.zeros((1, size)))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_group_of_one_gets_zero(name):
    assert np.array_equal(values(method(name, penalty="none"), [[0.7], [-3.0]]), [[0], [0]])


def test_supervised_advantage_is_the_reward():
    assert np.array_equal(values(METHODS["sft"], [[1.0], [0.25]]), [[1.0], [0.25]])


def test_scale_without_baseline_gives_zero_in_a_constant_group():
    assert np.array_equal(values(method("grpo", base="none"), [[2.0, 2.0]]), [[0, 0]])


@pytest.mark.parametrize("m", [GRPO, DR_GRPO, RLOO], ids=lambda m: m.name)
def test_invalid_rows_leave_the_statistics_and_get_zero(m):
    rewards = np.array([[1, np.nan, 0, 0.5]], np.float32)
    valid = np.array([[True, False, True, True]])
    got = advantages(m, rewards, Side(valid=valid))
    alone = values(m, [[1, 0, 0.5]])
    np.testing.assert_allclose(np.asarray(got.values)[0, [0, 2, 3]], alone[0], atol=1e-6)
    assert got.values[0, 1] == 0
    assert np.array_equal(got.keep, valid)


def test_group_without_valid_rows_gets_zero():
    side = Side(valid=np.zeros((1, 3), bool))
    assert np.array_equal(values(GRPO, np.full((1, 3), np.nan), side), np.zeros((1, 3)))


def test_population_deviation_is_the_other_ddof():
    """Rewards 1, 0: deviation 0.5 over G, 0.7071 over G - 1."""
    np.testing.assert_allclose(values(method("grpo", scale_ddof=0), [[1, 0]]), [[1, -1]], atol=3e-6)


def test_statistics_are_float32_for_bfloat16_rewards():
    got = advantages(GRPO, jnp.asarray(oracles.FB, jnp.bfloat16)).values
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, values(GRPO, oracles.FB), atol=DIGITS)


def test_state_is_handed_through():
    state = {"tracker": jnp.ones(3)}
    assert advantages(GRPO, oracles.FB, state=state).state is state


@settings(max_examples=60, deadline=None)
@given(groups, st.sampled_from(["grpo", "dr_grpo", "rloo", "dapo", "sft"]), st.randoms())
def test_advantages_agree_with_the_loops(rewards, name, random):
    m = METHODS[name]
    shape = rewards.shape
    draw = np.random.default_rng(random.getrandbits(32))
    valid = draw.random(shape) < 0.8
    lengths, limit = draw.integers(1, 9000, shape), 8000
    kl = draw.normal(size=shape).astype(np.float32)
    side = Side(lengths=lengths, max_completion_tokens=limit, sequence_kl=kl, valid=valid)
    expected = oracles.advantages(
        m, rewards, valid=valid, lengths=lengths, limit=limit, sequence_kl=kl
    )
    np.testing.assert_allclose(values(m, rewards, side), expected, rtol=2e-5, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(groups)
def test_law_1_leave_one_out_is_a_multiple_of_the_centred_reward(rewards):
    size = rewards.shape[1]
    factor = size / (size - 1) if size > 1 else 0.0
    np.testing.assert_allclose(values(RLOO, rewards), factor * values(DR_GRPO, rewards), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 16), st.data())
def test_law_1_binary_rewards_have_the_closed_form(size, data):
    """With population std: sqrt((1 - p) / p) for right, -sqrt(p / (1 - p)) for wrong answers."""
    right = data.draw(st.integers(1, size - 1))
    p = right / size
    got = values(method("grpo", scale_ddof=0, scale_eps=0.0), [[1] * right + [0] * (size - right)])
    np.testing.assert_allclose(got[0, :right], np.sqrt((1 - p) / p), rtol=1e-5)
    np.testing.assert_allclose(got[0, right:], -np.sqrt(p / (1 - p)), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(groups, st.sampled_from([0.5, 2.0, 8.0]), exact)
def test_law_14_affine_rewards_leave_grpo_alone_and_scale_the_others(rewards, factor, shift):
    grpo = method("grpo", scale_eps=0.0)
    moved = factor * rewards + shift
    np.testing.assert_allclose(values(grpo, moved), values(grpo, rewards), atol=1e-6)
    for m in (DR_GRPO, RLOO):
        np.testing.assert_allclose(values(m, moved), factor * values(m, rewards), atol=1e-5)
