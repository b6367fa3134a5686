import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.algo import method, policy_loss
from jgrpo.algo.levels import LEVELS

MASK = jnp.asarray(oracles.FT_MASK)
DELTA = jnp.where(MASK, oracles.FT_DELTA, 0.0)


@pytest.mark.parametrize("level", ["sequence", "sequence_token"])
def test_sequence_levels_are_the_row_mean(level):
    """Row 1: (0.3 - 0.1 + 0.05) / 3; row 2: (0.25 - 0.35) / 2; an empty row is 0."""
    got = LEVELS[level].function(DELTA, jnp.where(MASK, oracles.FT_LOGP, 0.0), MASK, None)
    np.testing.assert_allclose(got, [[0.083333] * 3, [-0.05] * 3], atol=6e-7)
    empty = jnp.zeros((1, 2))
    assert np.array_equal(LEVELS[level].function(empty, empty, empty > 0, None), empty)


def test_gradient_paths_differ_where_the_values_agree():
    """Through the mean each token gets a third of every position; locally, its own alone."""
    pick = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    def read(level, logp):
        clean = jnp.where(MASK, logp, 0.0)
        return jnp.sum(pick * LEVELS[level].function(clean - oracles.FT_OLD, clean, MASK, None))

    for level, row in (("token", [1, 0, 0]), ("sequence_token", [1, 0, 0])):
        slope = jax.grad(lambda x, level=level: read(level, x))(jnp.asarray(oracles.FT_LOGP))
        np.testing.assert_allclose(slope, [row, [0, 0, 0]])
    slope = jax.grad(lambda x: read("sequence", x))(jnp.asarray(oracles.FT_LOGP))
    np.testing.assert_allclose(slope, [[1 / 3] * 3, [0, 0, 0]], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1, 1), (2, 3)]),
    st.sampled_from([0.02, 0.3]),
    st.sampled_from(["token_mean", "sequence_mean", "sequence_sum"]),
)
def test_law_2_gspo_and_gspo_token_are_one_when_advantages_are_per_row(seed, shape, size, weights):
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=shape).astype(np.float32)
    logp = (old + size * draw.normal(size=shape)).astype(np.float32)
    mask = draw.random(shape) < 0.8
    adv = draw.normal(size=shape[0]).astype(np.float32)

    def value_and_grad(name):
        m = method(name, weights=weights, clip_low=0.1, clip_high=0.1)
        return jax.value_and_grad(
            lambda x: policy_loss(m, x, old_logp=old, mask=mask, advantages=adv)[0]
        )(logp)

    for ours, theirs in zip(value_and_grad("gspo"), value_and_grad("gspo_token"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.3]))
def test_law_3_segments_and_prefixes_end_in_gspo_and_in_token_ppo(seed, size):
    """One segment a row is GSPO; one token a segment is token PPO; so is CTPO at T = 1."""
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=(3, 4)).astype(np.float32)
    logp = (old + size * draw.normal(size=old.shape)).astype(np.float32)
    mask = draw.random(old.shape) < 0.8
    adv = draw.normal(size=3).astype(np.float32)
    bounds = {"clip_low": 0.1, "clip_high": 0.1, "dual_clip": 0.0, "weights": "token_mean"}

    def value_and_grad(name, width=4, segments=None, **fields):
        m = method(name, penalty="none", kl_coef=0.0, **fields)
        cut = lambda x: x[:, :width]  # noqa: E731
        ids = None if segments is None else cut(segments * np.ones(old.shape, int))
        return jax.value_and_grad(
            lambda x: policy_loss(
                m, x, old_logp=cut(old), mask=cut(mask), advantages=adv, segments=ids
            )[0]
        )(cut(logp))

    one, each = np.zeros((1, 4), int), np.arange(4)[None]
    logs = {"la_clip_low": -np.log(0.9), "la_clip_high": np.log(1.1), "la_clip_c": 20.0}
    logs = {name: float(bound) for name, bound in logs.items()}
    pairs = (
        (value_and_grad("rank_grpo", segments=one, **bounds), value_and_grad("gspo", **bounds)),
        (value_and_grad("rank_grpo", segments=each, **bounds), value_and_grad("grpo", **bounds)),
        (
            value_and_grad("ctpo", 1, weights="token_mean", **logs),
            value_and_grad("grpo", 1, **bounds),
        ),
    )
    for got, expected in pairs:
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
