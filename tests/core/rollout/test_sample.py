"""Draws follow the distribution they say, and its log-probs are those of the whole vocabulary."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.rollout.sample import Sampling, draw, filtered, inverse_cdf

LARGEST_UNIFORM = 1 - 2.0**-24
FILTERS = [
    Sampling(),
    Sampling(top_k=1),
    Sampling(top_k=5),
    Sampling(top_k=100),
    Sampling(top_p=1 / 16),
    Sampling(top_p=0.5),
    Sampling(top_p=15 / 16),
    Sampling(min_p=0.25),
    Sampling(min_p=1.0),
    Sampling(top_k=6, top_p=0.75),
    Sampling(top_k=6, top_p=0.75, min_p=0.5),
]

jitted_draw = partial(jax.jit, static_argnums=2)(draw)
jitted_filtered = partial(jax.jit, static_argnums=1)(filtered)
jitted_inverse_cdf = jax.jit(inverse_cdf)


def random_logits(rows=6, vocab=300, scale=3.0, seed=0):
    return scale * np.random.default_rng(seed).standard_normal((rows, vocab)).astype(np.float32)


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kept_by_sorting(probs, sampling):
    """Top-k, then top-p, then min-p on one row, by sorting; ties at the border stay."""
    keep = probs > 0
    if sampling.top_k:
        ordered = np.sort(probs)[::-1]
        keep &= probs >= ordered[min(sampling.top_k, len(probs)) - 1]
    if sampling.top_p < 1:
        ordered = np.sort(probs[keep])[::-1]
        enough = np.cumsum(ordered) >= sampling.top_p * ordered.sum()
        keep &= probs >= ordered[enough.argmax()]
    return keep & (probs >= sampling.min_p * probs.max())


def test_temperature_zero_takes_the_most_likely_token():
    logits = random_logits()
    for uniform in (0.0, 0.5, LARGEST_UNIFORM):
        token, _ = jitted_draw(logits, jnp.full(6, uniform), Sampling(temperature=0.0))
        np.testing.assert_array_equal(token, logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}])
def test_logp_is_tempered_log_softmax_over_the_full_vocabulary(temperature, filters):
    logits = random_logits()
    uniform = jnp.linspace(0, LARGEST_UNIFORM, 6)
    token, logp = jitted_draw(logits, uniform, Sampling(temperature=temperature, **filters))
    expected = log_softmax(logits / (temperature or 1.0))[np.arange(6), token]
    np.testing.assert_allclose(logp, expected, atol=1e-5)


def test_filters_apply_to_the_tempered_distribution():
    """Logits (2, 1, 0) at temperature 2 give 0.51, 0.31, 0.19; at temperature 1 0.67, 0.24, 0.09.

    The fewest tokens that reach 0.6 are two at temperature 2 and one at temperature 1.
    """
    logits, last = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([LARGEST_UNIFORM])
    assert jitted_draw(logits, last, Sampling(temperature=2.0, top_p=0.6))[0] == 1
    assert jitted_draw(logits, last, Sampling(temperature=1.0, top_p=0.6))[0] == 0


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
@settings(deadline=None, max_examples=60)
@given(
    # Integer counts of 1/1024: sums are exact, so that the border of a set is not a rounding.
    counts=st.lists(
        st.lists(st.integers(0, 40), min_size=20, max_size=20).filter(any), min_size=4, max_size=4
    )
)
def test_filters_keep_exactly_the_sets_that_sorting_keeps(sampling, counts):
    probs = np.array(counts, np.float32) / 1024
    got = np.asarray(jitted_filtered(probs, sampling))
    expected = [np.where(kept_by_sorting(row, sampling), row, 0) for row in probs]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("vocab", [1, 127, 128, 129, 1000])
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), zeros=st.sampled_from([0.0, 0.5, 0.99]), place=st.data())
def test_token_of_weight_zero_is_never_drawn_and_draws_invert_the_running_sum(
    vocab, seed, zeros, place
):
    rng = np.random.default_rng(seed)
    weights = (rng.exponential(size=(8, vocab)) ** 4).astype(np.float32)
    weights[rng.random(weights.shape) < zeros] = 0
    weights[:, place.draw(st.integers(0, vocab - 1))] += 1e-3
    ends = weights.astype(np.float64).cumsum(-1)
    # Extremes, and numbers right at the border between two tokens, where rounding decides.
    borders = (ends / ends[:, -1:])[np.arange(8), rng.integers(0, vocab, 8)].astype(np.float32)
    uniform = np.clip(borders + rng.integers(-2, 3, 8) * 2.0**-24, 0, LARGEST_UNIFORM)
    uniform[0], uniform[1] = 0, LARGEST_UNIFORM
    uniform = uniform.astype(np.float32)
    token = np.asarray(jitted_inverse_cdf(weights, uniform))
    assert (token >= 0).all()
    assert (token < vocab).all()
    rows = np.arange(8)
    assert (weights[rows, token] > 0).all()
    target, slack = uniform * ends[:, -1], 1e-5 * ends[:, -1]
    assert (ends[rows, token] >= target - slack).all()
    assert (ends[rows, token] - weights[rows, token] <= target + slack).all()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.6), Sampling(top_k=20, top_p=0.9), Sampling(min_p=0.05)],
    ids=str,
)
def test_frequencies_of_draws_match_the_filtered_probabilities(sampling):
    """Chi-square has mean k and variance 2k at k degrees of freedom; six deviations are allowed."""
    count, logits = 40_000, random_logits(rows=1, vocab=200, scale=1.0)
    uniform = jax.random.uniform(jax.random.key(3), (count,))
    token, _ = jitted_draw(jnp.broadcast_to(logits, (count, 200)), uniform, sampling)
    probs = np.exp(log_softmax(logits[0] / sampling.temperature))
    probs = np.where(kept_by_sorting(probs, sampling), probs, 0)
    expected = count * probs / probs.sum()
    observed = np.bincount(token, minlength=200)
    assert (observed[expected == 0] == 0).all()
    kept = expected > 0
    chi_square = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_running_sum_that_grows_at_a_zero_weight_does_not_draw_it():
    """Weights above the border of exact float32 sums: 2^24 + 1 rounds, whatever the order."""
    weights = np.zeros((1, 300), np.float32)
    weights[0, [3, 130, 131, 290]] = 2.0**24, 1, 1, 1
    for uniform in np.linspace(1 - 2.0**-20, LARGEST_UNIFORM, 50, dtype=np.float32):
        assert weights[0, int(jitted_inverse_cdf(weights, uniform[None])[0])] > 0
