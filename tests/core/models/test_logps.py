"""Chunked log-probs equal the direct formula, in value, entropy and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgrpo.models.logps import token_logps

N, D, V = 7, 6, 11


def inputs():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(N, D)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    return hidden, head, jnp.asarray(rng.integers(0, V, N), jnp.int32)


def oracle(hidden, head, targets, temperature):
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T / temperature
    logp = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    return logp[np.arange(N), np.asarray(targets)], -(np.exp(logp) * logp).sum(-1)


def test_two_logits_by_hand():
    """Logits (0, ln 3) at temperature 1: p = (1/4, 3/4); at temperature 1/2: (1/10, 9/10)."""
    hidden = jnp.ones((1, 1))
    head = jnp.log(jnp.array([[1.0], [3.0]]))
    for temperature, p in ((1.0, 0.75), (0.5, 0.9)):
        logp, entropy = token_logps(
            hidden,
            head,
            jnp.array([1]),
            temperature=temperature,
            chunk_tokens=4,
            entropy="value",
        )
        np.testing.assert_allclose(logp, np.log([p]), rtol=1e-5)
        np.testing.assert_allclose(entropy, [-(p * np.log(p) + (1 - p) * np.log(1 - p))], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100])
def test_values_match_the_formula_for_every_chunk(temperature, chunk_tokens):
    arrays = inputs()
    logp, entropy = token_logps(
        *arrays, temperature=temperature, chunk_tokens=chunk_tokens, entropy="value"
    )
    expected_logp, expected_entropy = oracle(*arrays, temperature)
    np.testing.assert_allclose(logp, expected_logp, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(entropy, expected_entropy, rtol=2e-5, atol=2e-6)


def test_greedy_temperature_means_one():
    arrays = inputs()
    greedy, none = token_logps(*arrays, temperature=0.0, chunk_tokens=3, entropy="none")
    plain, _ = token_logps(*arrays, temperature=1.0, chunk_tokens=3, entropy="none")
    np.testing.assert_array_equal(greedy, plain)
    assert none is None


@pytest.mark.parametrize("kind", ["value", "gradient"])
@pytest.mark.parametrize("chunk_tokens", [2, 3, 7])
def test_gradient_does_not_depend_on_the_chunk(chunk_tokens, kind):
    hidden, head, targets = inputs()
    weight = jnp.arange(1.0, N + 1)

    def loss(hidden, head, chunk_tokens):
        logp, entropy = token_logps(
            hidden, head, targets, temperature=0.7, chunk_tokens=chunk_tokens, entropy=kind
        )
        return (weight * logp).sum() + entropy.sum()

    def formula(hidden, head):
        logp = jax.nn.log_softmax(hidden @ head.T / 0.7)
        entropy = -(jnp.exp(logp) * logp).sum() if kind == "gradient" else 0.0
        return (weight * logp[jnp.arange(N), targets]).sum() + entropy

    for a, b in zip(
        jax.grad(loss, argnums=(0, 1))(hidden, head, chunk_tokens),
        jax.grad(formula, argnums=(0, 1))(hidden, head),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_chunked_program_never_holds_all_logits():
    """The [N, V] array would be 64 x 4096 floats; the compiled gradient stays far below it."""
    hidden, head, targets = jnp.ones((64, D)), jnp.ones((4096, D)), jnp.zeros(64, jnp.int32)

    def loss(hidden, head, chunk_tokens):
        return token_logps(
            hidden, head, targets, temperature=1.0, chunk_tokens=chunk_tokens, entropy="value"
        )[0].sum()

    def scratch_bytes(chunk_tokens):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
        analysis = gradient.lower(hidden, head, chunk_tokens).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert scratch_bytes(4) < 64 * 4096 * 4 / 2 < scratch_bytes(64)


def test_reductions_of_bfloat16_hidden_states_are_float32():
    hidden, head, targets = inputs()
    logp, entropy = token_logps(
        hidden.astype(jnp.bfloat16),
        head,
        targets,
        temperature=1.0,
        chunk_tokens=3,
        entropy="value",
    )
    assert logp.dtype == entropy.dtype == jnp.float32
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (hidden, head)]
    expected, _ = oracle(*rounded, targets, 1.0)
    np.testing.assert_allclose(logp, expected, rtol=1e-5, atol=1e-6)


def test_large_logits_stay_finite():
    logp, entropy = token_logps(
        jnp.full((1, 1), 1e4),
        jnp.array([[1.0], [-1.0]]),
        jnp.array([1]),
        temperature=1.0,
        chunk_tokens=1,
        entropy="value",
    )
    np.testing.assert_allclose(logp, [-2e4])
    np.testing.assert_allclose(entropy, [0.0], atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "value", "gradient"])
@pytest.mark.parametrize("chunk_tokens", [3, 7])
def test_gradient_matches_finite_differences_in_float64(kind, chunk_tokens):
    """Along one direction of hidden states and head, with the slopes of both outputs mixed."""
    rng = np.random.default_rng(1)
    hidden, head, targets = inputs()
    to_logp, to_entropy = rng.normal(size=(2, N))
    along = rng.normal(size=(N, D)), rng.normal(size=(V, D))

    def loss(hidden, head):
        logp, entropy = token_logps(
            hidden, head, targets, temperature=0.7, chunk_tokens=chunk_tokens, entropy=kind
        )
        extra = 0.0 if entropy is None else (jnp.asarray(to_entropy, jnp.float32) * entropy).sum()
        return (jnp.asarray(to_logp, jnp.float32) * logp).sum() + extra

    def plain(step):
        moved = [
            np.asarray(x, np.float64) + step * d for x, d in zip((hidden, head), along, strict=True)
        ]
        logp, entropy = oracle(*moved, targets, 0.7)
        return (to_logp * logp).sum() + (kind == "gradient") * (to_entropy * entropy).sum()

    expected = (plain(1e-6) - plain(-1e-6)) / 2e-6
    slopes = jax.grad(loss, argnums=(0, 1))(hidden, head)
    found = sum((np.asarray(s, np.float64) * d).sum() for s, d in zip(slopes, along, strict=True))
    assert abs(expected) > 1
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["none", "gradient"])
def test_backward_pass_keeps_nothing_as_large_as_the_logits(kind):
    """Kept: hidden states, head, targets, and up to three numbers a token."""
    hidden, head, targets = inputs()
    _, backward = jax.vjp(
        lambda hidden, head: token_logps(
            hidden, head, targets, temperature=1.0, chunk_tokens=2, entropy=kind
        ),
        hidden,
        head,
    )
    sizes = [x.size for x in jax.tree.leaves(backward)]
    assert max(sizes) < N * V
    assert sum(sizes) <= hidden.size + head.size + targets.size + 3 * N


def test_bfloat16_head_gets_a_gradient_added_up_in_float32():
    """1,024 equal tokens, each a chunk: a sum in bfloat16 would stick at 128, where 0.5 is lost."""
    count = 1024
    hidden = jnp.ones((count, 1), jnp.bfloat16)
    head = jnp.zeros((2, 1), jnp.bfloat16)

    def loss(head):
        targets = jnp.zeros(count, jnp.int32)
        logp, _ = token_logps(
            hidden, head, targets, temperature=1.0, chunk_tokens=1, entropy="none"
        )
        return logp.sum()

    slope = jax.grad(loss)(head)
    assert slope.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(slope, np.float32)[:, 0], [count / 2, -count / 2])
