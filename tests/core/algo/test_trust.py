import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgrpo.algo import method, policy_loss

GRPO = {"penalty": "none"}
ROOMY = {"clip_low": 0.2, "clip_high": 0.28}
WIDE = {"la_clip_low": 0.25, "la_clip_high": 0.2, "la_clip_c": 0.6}


def value_and_grad(m, logp, old, mask, advantages):
    (loss, metrics), gradient = jax.value_and_grad(
        lambda x: policy_loss(m, x, old_logp=old, mask=mask, advantages=advantages), has_aux=True
    )(logp)
    return loss, gradient, metrics


@pytest.mark.parametrize(
    ("m", "loss", "gradient"),
    [
        (method("grpo", **GRPO), -0.005012, [[0, -0.150806, -0.175212], [0.321006, 0, 0]]),
        (method("dapo"), -0.230417, [[0, -0.180967, -0.210254], [0.256805, 0, 0]]),
        (method("dr_grpo", constant_length_tokens=8), -0.067005,
         [[0, -0.056552, -0.065704], [0.080252, 0, 0]]),
        (method("dapo", clip_low=0.16, clip_high=0.24), -0.214417,
         [[0, -0.180967, -0.210254], [0.256805, 0, 0]]),
        (method("cispo", clip_high=0.2), 0.273912,
         [[-0.24, -0.180967, -0.210254], [0.24, 0.140938, 0]]),
        (method("gspo"), -0.000350, [[0, 0, 0], [0, 0, 0]]),
        (method("gspo_token"), -0.000350, [[0, 0, 0], [0, 0, 0]]),
        (method("gspo", **ROOMY), -0.067837, [[-0.181151] * 3, [0.237807, 0.237807, 0]]),
        (method("gspo_token", **ROOMY), -0.067837, [[-0.181151] * 3, [0.237807, 0.237807, 0]]),
        (method("luspo", **ROOMY), -0.679127, [[-0.543452] * 3, [0.475615, 0.475615, 0]]),
        (method("ngrpo"), -0.214417, [[0, -0.180967, -0.210254], [0.256805, 0, 0]]),
        (method("gmpo"), -0.067837, [[-0.181151] * 3, [0.237807, 0.237807, 0]]),
        (method("gmpo", cliprange=0.2), -0.012978,
         [[0, -0.175212, -0.175212], [0.256329, 0, 0]]),
        (method("sapo"), -0.100793,
         [[-0.218230, -0.150465, -0.175097], [0.313973, 0.172004, 0]]),
        (method("ctpo"), -0.239694, [[0, 0, 0], [0, 0, 0]]),
        (method("ctpo", **WIDE), -0.307594, [[0, -0.244281, -0.256805], [0.256805, 0.180967, 0]]),
        (method("ctpo", level="prefix_mean", **WIDE | {"clip_ratio_la_power": -0.5}), -0.235645,
         [[0, -0.221034, -0.217381], [0.256805, 0.190246, 0]]),
        (method("ctpo", trust="clip", dual_clip=3.0), -0.282227,
         [[0, 0, 0], [0.256805, 0.180967, 0]]),
        (method("vespo"), 0.044880, [[-0.140645] * 3, [0.179225, 0.179225, 0]]),
    ],
    ids=["D1 grpo", "D1 dapo", "D1 dr_grpo", "D1 dapo 16/24", "D2 cispo", "D3", "D4", "D3 wide",
         "D4 wide", "D10 luspo", "D1 ngrpo", "D5", "D5 narrow", "D6", "D7", "D7 wide", "D7 mean",
         "D7 plain", "D10 vespo"],
)  # fmt: skip
def test_worked_example_ft(m, loss, gradient):
    got, slope, _ = value_and_grad(
        m, oracles.FT_LOGP, oracles.FT_OLD, oracles.FT_MASK, oracles.FT_ADVANTAGES
    )
    np.testing.assert_allclose(got, loss, atol=6e-7)
    np.testing.assert_allclose(slope, gradient, atol=6e-7)


def test_worked_example_of_items():
    """D8: segments [[0, 0, 1], [0, 1, -]], one advantage per item."""
    loss, slope = jax.value_and_grad(
        lambda x: policy_loss(
            method("rank_grpo", kl_coef=0.0),
            x,
            old_logp=oracles.FT_OLD,
            mask=oracles.FT_MASK,
            advantages=np.array([[1, 1, -0.5], [-1, 0.5, 9]], np.float32),
            segments=np.array([[0, 0, 1], [0, 1, -1]]),
        )[0]
    )(oracles.FT_LOGP)
    np.testing.assert_allclose(loss, -0.140537, atol=6e-7)
    np.testing.assert_allclose(slope, [[0, 0, 0.105127], [0.256805, -0.070469, 0]], atol=6e-7)


def test_dual_clip_bounds_the_loss_of_negative_advantages():
    """Ratios 4.481689 and 1.221403, A = -1, c = 3: (3 + 1.221403) / 2, the first without slope."""
    m = method("dapo", clip_high=0.2, dual_clip=3.0)
    loss, slope, metrics = value_and_grad(
        m,
        np.array([[-0.5, -1.8]], np.float32),
        np.array([[-2, -2]], np.float32),
        np.ones((1, 2), bool),
        np.array([-1], np.float32),
    )
    np.testing.assert_allclose(loss, 2.110701, atol=6e-7)
    np.testing.assert_allclose(slope, [[0, 0.610701]], atol=6e-7)
    np.testing.assert_allclose(metrics["ratio/clip_high_fraction"], 0.5)


@pytest.mark.parametrize(("advantage", "clipped"), [(1.0, "high"), (-1.0, "low")])
def test_clip_acts_on_one_side_only(advantage, clipped):
    """Ratios e^0.5 and e^-0.5: only the move that the advantage rewards is cut."""
    logp = np.array([[0.5, -0.5]], np.float32) - 2
    _, slope, metrics = value_and_grad(
        method("grpo", **GRPO),
        logp,
        np.full((1, 2), -2, np.float32),
        np.ones((1, 2), bool),
        np.array([advantage], np.float32),
    )
    assert (slope[0, 0] == 0) == (clipped == "high")
    assert (slope[0, 1] == 0) == (clipped == "low")
    assert metrics[f"ratio/clip_{clipped}_fraction"] == 0.5
    assert metrics["ratio/clip_fraction"] == 0.5


def test_gradient_is_whole_at_the_very_edge_of_the_range():
    """The operators min and clip halve a gradient at a tie; with clip range 0 all tie."""
    old = np.full((1, 2), -1, np.float32)
    m = method("grpo", clip_low=0.0, clip_high=0.0, **GRPO)
    for advantage in (1.0, -1.0):
        _, slope, _ = value_and_grad(
            m, old, old, np.ones((1, 2), bool), np.array([advantage], np.float32)
        )
        np.testing.assert_allclose(slope, [[-advantage / 2] * 2])


def test_cispo_truncates_the_weight_on_both_signs_and_reports_it():
    """Ratio 7.389 with cap 5: weight 5 for either sign; clip_low 1 leaves no lower bound."""
    logp, old = np.array([[-1.0, -4.0]], np.float32), np.array([[-3.0, -2.0]], np.float32)
    for advantage in (1.0, -1.0):
        _, slope, metrics = value_and_grad(
            method("cispo"), logp, old, np.ones((1, 2), bool), np.array([advantage], np.float32)
        )
        np.testing.assert_allclose(slope, [[-2.5 * advantage, -0.067668 * advantage]], atol=6e-7)
        assert metrics["ratio/clip_high_fraction"] == 0.5
        assert metrics["ratio/clip_low_fraction"] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_law_4_cispo_without_truncation_has_the_unclipped_gradient(seed):
    draw = np.random.default_rng(seed)
    old = -draw.exponential(size=(2, 3)).astype(np.float32)
    logp = (old + 0.5 * draw.normal(size=(2, 3))).astype(np.float32)
    mask = draw.random((2, 3)) < 0.8
    adv = draw.normal(size=2).astype(np.float32)
    wide = {"clip_low": 1.0, "clip_high": 1e9}
    _, ours, _ = value_and_grad(method("cispo", **wide), logp, old, mask, adv)
    plain = method("dapo", dual_clip=0.0, **wide)
    _, theirs, _ = value_and_grad(plain, logp, old, mask, adv)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_linear_trust_ignores_the_ratio():
    _, slope, metrics = value_and_grad(
        method("sft"),
        oracles.FT_LOGP,
        oracles.FT_OLD,
        oracles.FT_MASK,
        jnp.ones(2),
    )
    np.testing.assert_allclose(slope, oracles.FT_MASK / -5, rtol=1e-6)
    assert metrics["ratio/clip_fraction"] == 0
