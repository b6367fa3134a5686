import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.algo import Side, advantages, method, policy_loss, sequence_kl
from jgrpo.algo.penalties import PENALTIES


def kl(penalty, logp):
    """The penalty alone: coefficient 1, no advantage."""
    m = method("grpo", penalty=penalty, kl_coef=1.0)
    loss, _ = policy_loss(
        m,
        logp,
        old_logp=oracles.FT_OLD,
        mask=oracles.FT_MASK,
        advantages=np.zeros(2, np.float32),
        ref_logp=oracles.FT_REF,
    )
    return loss


@pytest.mark.parametrize(
    ("penalty", "value", "gradient"),
    [
        ("k1", 0.058333, [[1 / 6, 1 / 6, 1 / 6], [0.25, 0.25, 0]]),
        ("k2", 0.030000, [[0.083333, -0.033333, 0.008333], [0.0375, -0.0375, 0]]),
        ("k3", 0.027163, [[0.065578, -0.036900, 0.008128], [0.034823, -0.040459, 0]]),
        ("k3_plus", 0.027163, [[0.083333, -0.033333, 0.008333], [0.0375, -0.0375, 0]]),
    ],
)
def test_worked_example_ft(penalty, value, gradient):
    got, slope = jax.value_and_grad(lambda logp: kl(penalty, logp))(oracles.FT_LOGP)
    np.testing.assert_allclose(got, value, atol=6e-7)
    np.testing.assert_allclose(slope, gradient, atol=6e-7)


@settings(max_examples=30, deadline=None)
@given(st.floats(-6, 6, width=32))
def test_law_15_gradients_of_the_estimators(u):
    slope = {k: jax.grad(lambda x, k=k: PENALTIES[k].function(x).sum()) for k in PENALTIES}
    point = jnp.full((1, 1), u)
    np.testing.assert_allclose(slope["k1"](point), [[1.0]])
    np.testing.assert_allclose(slope["k2"](point), [[u]], rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(slope["k3"](point), [[1 - np.exp(-u)]], rtol=1e-5, atol=1e-6)


def test_k3_is_never_negative_near_zero():
    """exp(-u) + u - 1 loses everything to rounding at u = 1e-5; expm1 does not."""
    u = jnp.linspace(-1e-3, 1e-3, 101)[None]
    assert np.min(PENALTIES["k3"].function(u)) >= -1e-9


# Expectations over all tokens of a small vocabulary, so that nothing is estimated.

LOGITS = np.array([0.3, -0.5, 1.0, 0.1, -1.2])
REFERENCE = np.array([-0.4, 0.2, 0.5, -0.3, 0.6])


def kl_gradients(logits, reference):
    """Of KL(policy || reference) and KL(reference || policy) by the policy's logits."""
    ref = jax.nn.log_softmax(reference)
    forward = lambda z: jnp.sum(jax.nn.softmax(z) * (jax.nn.log_softmax(z) - ref))  # noqa: E731
    reverse = lambda z: jnp.sum(jnp.exp(ref) * (ref - jax.nn.log_softmax(z)))  # noqa: E731
    return jax.grad(forward)(logits), jax.grad(reverse)(logits)


def expected_gradient(penalty, logits, reference):
    """Of the loss by the logits: each token a completion of one token, weighted by its chance."""
    m = method("dr_grpo", penalty=penalty, kl_coef=1.0, weights="token_sum")
    start = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))

    def loss(z):
        logp = jax.nn.log_softmax(z)[:, None]
        return policy_loss(
            m, logp, old_logp=start[:, None], mask=np.ones((5, 1), bool),
            advantages=np.zeros(5, np.float32), weights=jnp.exp(start)[:, None],
            ref_logp=jax.nn.log_softmax(jnp.asarray(reference, jnp.float32))[:, None],
        )[0]  # fmt: skip

    return jax.grad(loss)(jnp.asarray(logits, jnp.float32))


@pytest.mark.parametrize(("penalty", "which"), [("k1", None), ("k2", 0), ("k3", 1), ("k3_plus", 0)])
def test_expected_gradient_of_a_penalty_in_the_loss(penalty, which):
    """F1: k2 that of KL(policy || reference), k3 that of KL(reference || policy), k1 none."""
    both = kl_gradients(jnp.asarray(LOGITS), jnp.asarray(REFERENCE))
    expected = np.zeros(5) if which is None else both[which]
    got = expected_gradient(penalty, LOGITS, REFERENCE)
    np.testing.assert_allclose(got, expected, atol=2e-6)


def in_reward(penalty, kl_in, logits, reference):
    """The gradient ascended: expected advantage of a token's reward times that of its log-prob."""
    logp = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    gap = (logp - jax.nn.log_softmax(jnp.asarray(reference, jnp.float32))).reshape(1, 5, 1)
    mask = np.ones((1, 5, 1), bool)
    if kl_in == "reward":
        m = method("rloo", base="none", penalty=penalty, kl_coef=1.0)
        side = Side(sequence_kl=sequence_kl(m, gap, mask))
        taken = advantages(m, np.zeros((1, 5), np.float32), side).values.reshape(-1)
    else:
        m = method("reinforce_pp", penalty=penalty, kl_coef=1.0, post_eps=0.0)
        taken = advantages(m, np.zeros((1, 5), np.float32), Side(token_kl=gap, mask=mask)).values
        raw = PENALTIES[penalty].function(gap[0])[:, 0]
        # Whitening moves and stretches: undone here by the penalty's own mean and deviation.
        taken = taken[:, 0] * jnp.std(raw, ddof=1) - jnp.mean(raw)
    chances = jnp.exp(logp)
    slope = jax.jacobian(jax.nn.log_softmax)(jnp.asarray(logits, jnp.float32))
    return -(chances * taken) @ slope


@pytest.mark.parametrize("kl_in", ["reward", "token_reward"])
@pytest.mark.parametrize("penalty", ["k1", "k2", "k3", "k3_plus"])
def test_expected_gradient_of_a_penalty_in_the_reward(penalty, kl_in):
    """k1: KL(policy || reference); k3: that less KL(reference || policy); k2: E[k2 dlogp]."""
    forward, reverse = kl_gradients(jnp.asarray(LOGITS), jnp.asarray(REFERENCE))
    chances = jax.nn.softmax(jnp.asarray(LOGITS))
    u = jax.nn.log_softmax(jnp.asarray(LOGITS)) - jax.nn.log_softmax(jnp.asarray(REFERENCE))
    squares = (chances * u**2 / 2) @ jax.jacobian(jax.nn.log_softmax)(jnp.asarray(LOGITS))
    expected = {"k1": forward, "k2": squares}.get(penalty, forward - reverse)
    got = in_reward(penalty, kl_in, LOGITS, REFERENCE)
    np.testing.assert_allclose(got, expected, atol=3e-6)
    assert np.abs(expected).max() > 0.05


def test_only_k1_pulls_from_the_reward_near_the_reference():
    """From a tenth to a hundredth of the way k1's gradient falls tenfold, k2's and k3's more."""
    for penalty, share in (("k1", 0.1), ("k2", 0.01), ("k3", 0.01)):
        near, nearer = (
            np.abs(
                in_reward(penalty, "reward", REFERENCE + s * (LOGITS - REFERENCE), REFERENCE)
            ).max()
            for s in (0.1, 0.01)
        )
        np.testing.assert_allclose(nearer / near, share, rtol=0.15, err_msg=penalty)


def test_summed_penalty_is_clamped_and_leaves_masked_tokens_out():
    gap = np.array([[[30.0, 1.0, np.nan], [-1.0, 0.5, 7.0]]], np.float32)
    mask = np.array([[[1, 1, 0], [1, 1, 0]]], bool)
    for penalty, expected in (("k1", [21, -0.5]), ("k2", [200.5, 0.625])):
        got = sequence_kl(method("rloo", penalty=penalty), gap, mask)
        np.testing.assert_allclose(got, [expected], rtol=1e-6)
    k3 = [np.exp(-20) + 19 + np.exp(-1), np.exp(1) - 2 + np.exp(-0.5) - 0.5]
    got = sequence_kl(method("rloo", penalty="k3"), gap, mask)
    np.testing.assert_allclose(got, [k3], rtol=1e-5)
