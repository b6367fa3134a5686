import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.algo import METHODS, advantages, method, policy_loss
from jgrpo.algo.methods import SLOTS

FT = {"old_logp": oracles.FT_OLD, "mask": oracles.FT_MASK}
PER_TOKEN = oracles.FT_ADVANTAGES[:, None] * np.ones((1, 3), np.float32)
SEGMENTS = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    ("m", "loss", "gradient"),
    [
        (method("grpo"), -0.002457, [[0.002623, -0.108112, -0.123568], [0.228378, -0.001618, 0]]),
        (method("dapo", shape="none"), -0.162929,
         [[0, -0.127963, -0.148672], [0.181588, 0, 0]]),
        (method("gspo", clip_low=0.1, clip_high=0.1), -0.047968,
         [[-0.128093] * 3, [0.168155, 0.168155, 0]]),
        (method("dr_grpo", constant_length_tokens=8), -0.033503,
         [[0, -0.028276, -0.032852], [0.040126, 0, 0]]),
    ],
    ids=lambda x: x.name if hasattr(x, "name") else "",
)  # fmt: skip
def test_whole_pipeline_on_ft(m, loss, gradient):
    """Rewards 1 and 0 in one group, through advantages, loss and gradient."""
    adv = advantages(m, np.array([[1, 0]], np.float32)).values.reshape(-1)
    got, slope = jax.value_and_grad(
        lambda x: policy_loss(m, x, advantages=adv, ref_logp=oracles.FT_REF, **FT)[0]
    )(oracles.FT_LOGP)
    np.testing.assert_allclose(got, loss, atol=6e-7)
    np.testing.assert_allclose(slope, gradient, atol=6e-7)


def test_supervised_loss_is_the_mean_negative_log_likelihood():
    logp = jnp.asarray(oracles.FT_LOGP)
    loss, _ = policy_loss(
        METHODS["sft"],
        logp,
        old_logp=jax.lax.stop_gradient(logp),
        mask=oracles.FT_MASK,
        advantages=np.ones(2, np.float32),
    )
    np.testing.assert_allclose(loss, -oracles.FT_LOGP[oracles.FT_MASK].mean(), rtol=1e-6)


def test_metrics_on_ft():
    """Five tokens: the first is clipped above (A = 1), the last below (A = -1).

    Ratios 1.349859, .904837, 1.051271, 1.284025, .704688; k3 is e^d - d - 1 and e^-u + u - 1.
    """
    loss, metrics = policy_loss(
        METHODS["grpo"],
        oracles.FT_LOGP,
        advantages=oracles.FT_ADVANTAGES,
        ref_logp=oracles.FT_REF,
        **FT,
    )
    d = np.array([0.3, -0.1, 0.05, 0.25, -0.35])
    u = np.array([0.5, -0.2, 0.05, 0.15, -0.15])
    expected = {
        "ratio/mean": np.exp(d).mean(),
        "ratio/variance": np.square(np.exp(d) - 1).mean(),
        "ratio/clip_fraction": 0.4,
        "ratio/clip_low_fraction": 0.2,
        "ratio/clip_high_fraction": 0.2,
        "ratio/deviation_max": np.exp(0.3) - 1,
        "kl/old": (np.exp(d) - d - 1).mean(),
        "kl/ref": (np.exp(-u) + u - 1).mean(),
        "loss/policy": -0.005012,
        "loss/kl": 0.04 * 0.027163,
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(loss, metrics["loss/policy"] + metrics["loss/kl"], rtol=1e-6)


def test_metrics_of_microbatches_add_up():
    m = METHODS["grpo"]
    draw = np.random.default_rng(0)
    shape = (6, 5)
    logp, old, ref = (-draw.exponential(size=shape).astype(np.float32) for _ in range(3))
    mask = draw.random(shape) < 0.7
    adv = draw.normal(size=6).astype(np.float32)
    share = (mask / mask.sum()).astype(np.float32)
    weights = np.asarray(oracles.token_weights(m, mask), np.float32)
    _, whole = policy_loss(m, logp, old_logp=old, mask=mask, advantages=adv, ref_logp=ref)
    parts = [
        policy_loss(
            m,
            logp[rows],
            old_logp=old[rows],
            mask=mask[rows],
            advantages=adv[rows],
            ref_logp=ref[rows],
            weights=weights[rows],
            token_share=share[rows],
        )[1]
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    for name, value in whole.items():
        combine = max if name.endswith("_max") else sum
        np.testing.assert_allclose(combine(p[name] for p in parts), value, rtol=1e-5, err_msg=name)


def test_kl_to_the_reference_is_reported_but_not_penalised_without_a_coefficient():
    m = method("grpo", kl_coef=0.0)
    call = dict(advantages=oracles.FT_ADVANTAGES, **FT)
    loss, metrics = policy_loss(m, oracles.FT_LOGP, ref_logp=oracles.FT_REF, **call)
    assert metrics["kl/ref"] > 0
    assert metrics["loss/kl"] == 0
    bare, without = policy_loss(m, oracles.FT_LOGP, **call)
    assert bare == loss
    assert "kl/ref" not in without


def test_penalty_in_the_reward_stays_out_of_the_loss():
    call = dict(advantages=oracles.FT_ADVANTAGES, ref_logp=oracles.FT_REF, **FT)
    _, metrics = policy_loss(METHODS["rloo"], oracles.FT_LOGP, **call)
    assert metrics["loss/kl"] == 0


def test_advantages_per_token_equal_advantages_per_row_when_constant():
    per_token = np.broadcast_to(oracles.FT_ADVANTAGES[:, None], (2, 3)).copy()
    m = method("dapo")
    by_row, _ = policy_loss(m, oracles.FT_LOGP, advantages=oracles.FT_ADVANTAGES, **FT)
    by_token, _ = policy_loss(m, oracles.FT_LOGP, advantages=per_token, **FT)
    assert by_row == by_token


def test_log_ratios_are_clamped_before_the_exponential():
    m = method("dapo", dual_clip=0.0)
    logp, old = np.array([[0.0]], np.float32), np.array([[-400.0]], np.float32)
    mask, adv = np.ones((1, 1), bool), np.array([-1], np.float32)
    loss, metrics = policy_loss(m, logp, old_logp=old, mask=mask, advantages=adv)
    np.testing.assert_allclose(loss, np.exp(20), rtol=1e-6)
    assert np.isfinite(metrics["kl/old"])


def test_missing_reference_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"'grpo'.*'k3'.*0.04.*needs ref_logp.*kl_coef=0"):
        policy_loss(METHODS["grpo"], oracles.FT_LOGP, advantages=oracles.FT_ADVANTAGES, **FT)


@pytest.fixture
def _without_shape_checks():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_without_shape_checks")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"old_logp": np.zeros((2, 1), np.float32)}, r"old_logp has shape \(2, 1\).*\(2, 3\)"),
        ({"mask": np.ones((3,), bool)}, r"mask has shape \(3,\)"),
        ({"advantages": np.zeros((2, 1), np.float32)}, r"advantages has shape \(2, 1\)"),
        ({"advantages": np.zeros(3, np.float32)}, r"advantages has shape \(3,\)"),
        ({"weights": np.zeros((1, 3), np.float32)}, r"weights has shape \(1, 3\)"),
    ],
)
def test_arrays_that_would_broadcast_are_refused_in_production_too(wrong, message):
    arguments = {"advantages": oracles.FT_ADVANTAGES, **FT, **wrong}
    with pytest.raises(ValueError, match=message):
        policy_loss(METHODS["gspo"], oracles.FT_LOGP, **arguments)


def test_strict_dtype_promotion_holds_for_every_row():
    for m in METHODS.values():
        with jax.numpy_dtype_promotion("strict"):
            # Types are found without computing anything.
            loss, _ = jax.eval_shape(
                lambda x, m=m: policy_loss(
                    m, x, advantages=PER_TOKEN, ref_logp=oracles.FT_REF, segments=SEGMENTS,
                    behavior_logp=oracles.FT_OLD, **FT,
                ),
                jnp.asarray(oracles.FT_LOGP, jnp.bfloat16),
            )  # fmt: skip
        assert loss.dtype == jnp.float32, m.name


SIZE = {
    **{"clip_low": 0.2, "clip_high": 0.3, "kl_coef": 0.1, "constant_length_tokens": 7},
    "off_policy_delta": 0.117,  # not a value that a mean of the drawn ratios can have
}
LOSS_SLOTS = ("level", "trust", "weights", "penalty", "veto", "correction")
slots = st.fixed_dictionaries({slot: st.sampled_from(SLOTS[slot]) for slot in LOSS_SLOTS})


@settings(max_examples=40, deadline=None)
@given(
    slots,
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1, 1), (2, 3)]),
    st.sampled_from([0.01, 0.4, 30.0]),
    st.sampled_from([0.0, 3.0]),
)
def test_any_composition_agrees_with_the_loops(chosen, seed, shape, size, dual_clip):
    """Value and gradient in float64, with empty rows, bad padding and extreme log-ratios."""
    m = dataclasses.replace(METHODS["gspo"], name="any", dual_clip=dual_clip, **SIZE, **chosen)
    draw = np.random.default_rng(seed)
    mask = draw.random(shape) < 0.7
    # Quarters are exact, so that no comparison with a bound hangs on the last bit.
    old, noise, far, gap = (np.round(4 * draw.normal(size=shape)) / 4 for _ in range(4))
    logp = (old + np.float32(size) * noise).astype(np.float32)
    old, ref = old.astype(np.float32), (logp - np.clip(far, -3, 3)).astype(np.float32)
    behavior = (old + 0.3 * gap).astype(np.float32)
    segments = draw.integers(-1, 3, shape)
    per_token = draw.normal(size=(shape[0], 1)).astype(np.float32) * np.ones(shape, np.float32)
    marked = draw.random(shape) < 0.5
    more = (ref, segments, behavior, marked)
    expected = oracles.policy_loss(m, logp, old, mask, per_token, *more)
    got = jax.value_and_grad(
        lambda x: policy_loss(
            m, x, old_logp=old, mask=mask, advantages=per_token, ref_logp=ref, segments=segments,
            behavior_logp=behavior, entropy_mask=marked,
        )[0]
    )(np.where(mask, logp, np.nan).astype(np.float32))  # fmt: skip
    for ours, theirs in zip(got, expected, strict=True):
        scale = max(1.0, float(np.max(np.abs(theirs), initial=0.0)))
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * scale)


ENTROPY = np.array([[0.5, 1.0, 1.5], [2.0, 1.0, 9.0]], np.float32)


def test_entropy_bonus_lowers_the_loss_by_the_weighted_entropy():
    """Token means 1 and 1.5, mean 1.25, times 0.1; the masked 9 does not count."""
    m = method("gspo", bonus="entropy", entropy_coef=0.1)
    arguments = {"advantages": oracles.FT_ADVANTAGES, **FT}
    without, _ = policy_loss(METHODS["gspo"], oracles.FT_LOGP, **arguments)
    loss, metrics = policy_loss(m, oracles.FT_LOGP, entropy=ENTROPY, **arguments)
    np.testing.assert_allclose(loss - without, -0.125, atol=1e-6)
    np.testing.assert_allclose(metrics["loss/bonus"], -0.125, atol=1e-6)
    slope = jax.grad(lambda h: policy_loss(m, oracles.FT_LOGP, entropy=h, **arguments)[0])(ENTROPY)
    np.testing.assert_allclose(slope, -0.1 * np.array([[1 / 6] * 3, [0.25, 0.25, 0]]), atol=1e-7)


@pytest.mark.parametrize(
    ("m", "word"),
    [
        (method("gspo", bonus="entropy"), "needs entropy"),
        (METHODS["c_grpo"], "needs behavior_logp"),
        (method("gspo", veto="top_entropy"), "needs entropy_mask"),
        (METHODS["rank_grpo"], "needs (ref_logp|segments)"),
        (METHODS["disco"], "late_advantages"),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_what_is_missing_is_named(m, word):
    with pytest.raises(ValueError, match=word):
        policy_loss(m, oracles.FT_LOGP, advantages=oracles.FT_ADVANTAGES, **FT)
