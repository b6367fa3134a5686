import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.algo import method, policy_loss
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
