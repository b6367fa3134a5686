import numpy as np
import pytest

from jgrpo.algo import METHODS, Side, advantages, method

RAW = {"base": "none", "scale": "none"}
DAPO_RAW = method("dapo", **RAW)


def test_overlong_penalty_grows_over_the_buffer_and_stops_at_its_size():
    """L_max 20480, L_c 4096: 16000 is free, 18432 costs half, 20480 and more cost 1."""
    side = Side(lengths=np.array([[16000, 18432, 20480, 21000]]), max_completion_tokens=20480)
    got = advantages(DAPO_RAW, np.array([[1, 1, -1, 1]], np.float32), side).values
    np.testing.assert_allclose(got, [[1, 0.5, -2, 0]], atol=1e-7)


def test_overlong_penalty_scales_with_its_constant():
    m = method("dapo", overlong_buffer_tokens=10, overlong_penalty=0.5, **RAW)
    side = Side(lengths=np.array([[10, 15, 20]]), max_completion_tokens=20)
    got = advantages(m, np.zeros((1, 3), np.float32), side).values
    np.testing.assert_allclose(got, [[0, -0.25, -0.5]], atol=1e-7)


def test_kl_in_the_reward_is_subtracted_before_the_baseline():
    """Rewards 1, 0 with KL 10, 20 at 0.03: 0.7, -0.6, so each differs from the other by 1.3."""
    side = Side(sequence_kl=np.array([[10, 20]], np.float32))
    got = advantages(METHODS["rloo"], np.array([[1, 0]], np.float32), side).values
    np.testing.assert_allclose(got, [[1.3, -1.3]], atol=1e-6)


def test_kl_in_the_reward_of_an_invalid_row_may_be_nan():
    side = Side(
        sequence_kl=np.array([[10, 20, np.nan]], np.float32), valid=np.array([[True, True, False]])
    )
    got = advantages(METHODS["rloo"], np.array([[1, 0, 5]], np.float32), side).values
    np.testing.assert_allclose(got, [[1.3, -1.3, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("m", "side", "field"),
    [
        (METHODS["rloo"], None, "sequence_kl"),
        (METHODS["dapo"], Side(max_completion_tokens=9), "lengths"),
        (METHODS["dapo"], Side(lengths=np.ones((1, 2), np.int32)), "max_completion_tokens"),
    ],
)
def test_missing_side_information_is_named(m, side, field):
    with pytest.raises(ValueError, match=rf"'{m.name}' needs side.{field}"):
        advantages(m, np.zeros((1, 2), np.float32), side)
