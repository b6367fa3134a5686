"""What the preflight judges, on hosts made up here; the real ones are in tests/integration."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jgrpo.parallel import measuring
from jgrpo.parallel.distributed import VARIABLES, initialize
from jgrpo.parallel.measuring import CPU, gather, matmul_rate, memory_rate, reduce_rate
from jgrpo.parallel.preflight import Host, Limits, clock_offsets, judge

SMALL = dataclasses.replace(CPU, copy=1000, matmul=8, reduce=1000, times=2)


def host(name, **changes):
    facts = {
        "name": name,
        "kind": "TPU v5 lite",
        "chips": 4,
        "hbm_gib": 15.75,
        "rates": {"memory": [700.0] * 4, "matmul": [180.0] * 4, "all-reduce": [80.0]},
        "wrong": {"memory": 0, "matmul": 0, "all-reduce": 0},
        "stamps": [10.0, 20.0, 30.0],
        "disk_gib": 50.0,
        "versions": {"python": "3.12.1", "jax": "0.10.2", "jgrpo": "0.1.0+aa"},
    }
    return Host(**(facts | changes))


GOOD = [host("0 a"), host("1 b"), host("2 c")]


def test_equal_hosts_pass():
    assert judge(GOOD, Limits()) == []
    assert judge(GOOD, Limits(chips=12)) == []


@pytest.mark.parametrize(
    ("check", "message", "changes"),
    [
        ("chips", "3 found, expected 4 as elsewhere", {"chips": 3}),
        ("chips", "'TPU v4', elsewhere 'TPU v5 lite'", {"kind": "TPU v4"}),
        ("HBM", "14.0 GiB, elsewhere 15.8", {"hbm_gib": 14.0}),
        (
            "memory",
            "chip 2: 400, median 700, at least 0.7 of it",
            {"rates": GOOD[0].rates | {"memory": [700.0, 710.0, 400.0, 690.0]}},
        ),
        (
            "all-reduce",
            "8, median 80, at least 0.7 of it",
            {"rates": GOOD[0].rates | {"all-reduce": [8.0]}},
        ),
        ("matmul", "1,024 wrong elements", {"wrong": GOOD[0].wrong | {"matmul": 1024}}),
        ("clock", "+2.000 s off the median, at most 1", {"stamps": [12.0, 22.0, 31.0]}),
        ("disk", "3.5 GiB free, at least 20", {"disk_gib": 3.5}),
        (
            "jgrpo",
            "0.1.0+bb, elsewhere 0.1.0+aa",
            {"versions": GOOD[0].versions | {"jgrpo": "0.1.0+bb"}},
        ),
    ],
)
def test_the_host_that_fails_a_check_is_named(check, message, changes):
    (failure,) = judge([GOOD[0], host("1 b", **changes), GOOD[2]], Limits())
    assert dataclasses.astuple(failure) == ("1 b", check, message)


def test_speeds_of_simulated_devices_are_not_judged():
    slow = host("0 a", kind="cpu", rates=GOOD[0].rates | {"memory": [700.0, 1.0, 1.0, 700.0]})
    assert judge([slow], Limits()) == []
    assert len(judge([dataclasses.replace(slow, kind="TPU v4")], Limits())) == 2


def test_chips_are_expected_in_equal_parts():
    failures = judge([host("0 a"), host("1 b", chips=8)], Limits(chips=16))
    assert [(failure.host, failure.message) for failure in failures] == [
        ("0 a", "4 found, expected 8 of 16 on 2 host(s)")
    ]


def test_one_delayed_barrier_is_not_a_wrong_clock():
    """[20, 20, 21.5] has median 20: the second barrier alone was left late."""
    late = host("2 c", stamps=[10.0, 21.5, 30.0])
    assert clock_offsets([*GOOD[:2], late]) == [0.0, 0.0, 0.0]


def test_measurements_find_no_wrong_element_here():
    device = jax.devices()[3]
    rates = [
        memory_rate(device, SMALL),
        matmul_rate(device, SMALL),
        reduce_rate(jax.devices(), SMALL),
        reduce_rate(jax.devices()[:3], SMALL),
    ]
    assert [rate.wrong for rate in rates] == [0] * 4
    assert all(rate.value > 0 for rate in rates)
    assert reduce_rate(jax.devices()[:1], SMALL).value == 0


@pytest.mark.parametrize(("broken", "wrong"), [(lambda x: x, 0), (lambda x: x[::-1], 2)])
def test_elements_that_arrive_wrong_are_counted(broken, wrong):
    known = jnp.array([1.0, 2.0, 3.0])
    assert int(measuring._unlike(broken(known), known)) == wrong
    assert int(measuring._unlike(known.at[1].set(jnp.nan), known)) == 1


def test_a_sum_that_loses_one_device_is_wrong_everywhere(monkeypatch):
    """Only the comparison of the all-reduce stands between a broken link and a spoilt run."""
    psum = jax.lax.psum

    def lossy(x, axis):
        return psum(jnp.where(jax.lax.axis_index(axis) == 5, 0.0, x), axis)

    monkeypatch.setattr(measuring.lax, "psum", lossy)
    assert reduce_rate(jax.devices(), SMALL).wrong == 8 * SMALL.reduce


def test_a_message_comes_back_and_a_long_one_is_refused():
    assert gather(b"here", 16) == [b"here"]
    with pytest.raises(ValueError, match="5 bytes does not fit into 4"):
        gather(b"hello", 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("a:1", "", ""), "JGRPO_COORDINATOR is set but not JGRPO_NUM_PROCESSES, JGRPO_PROCESS_ID"),
        (("", "2", "0"), "is set but not JGRPO_COORDINATOR: set all or none"),
        (("a", "2", "0"), "JGRPO_COORDINATOR must be host:port, got 'a'"),
        (("a:1", "two", "0"), "JGRPO_NUM_PROCESSES must be a whole number, got 'two'"),
        (("a:1", "2", "2"), r"JGRPO_PROCESS_ID must be below JGRPO_NUM_PROCESSES \(2\), got 2"),
    ],
)
def test_variables_that_make_no_sense_are_refused(monkeypatch, values, message):
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        initialize()
