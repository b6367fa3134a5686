"""Functions are found and described; what they return is taken as numbers or refused."""

import numpy as np
import pytest

from jgrpo.rewards.calls import LARGEST, Call, checked, describe, parse_answer, resolve, run


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("json", "must have the form package.module:function"),
        ("json:", "must have the form"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("json:load_s", "has no function 'load_s'"),
        ("json:decoder", "has no function 'decoder'"),
    ],
)
def test_wrong_path_is_explained(path, message):
    with pytest.raises(ValueError, match=message):
        resolve(path)


def test_signature_says_how_to_call():
    _, described = describe("foreign:sees")
    assert (described.named, described.required) == (["prompts", "completions", "level"],) * 2
    _, described = describe("foreign:scaled")
    assert (described.required, described.takes_all) == (["completions"], False)
    _, described = describe("foreign:by_position")
    assert described.positional == ["completions"]
    assert describe("hostile:good")[1].takes_all


def test_call_gives_what_trl_gives_to_those_that_take_it():
    """A column of the same name does not hide the state."""
    columns = {"completions": ["a"], "trainer_state": [0]}
    call = Call(function="foreign:trl_state", arguments=columns, step=3)
    assert run(*describe("foreign:trl_state"), call) == [3.0]


@pytest.mark.parametrize(
    "returned",
    [
        [1, None, 0.5],
        (True, None, 0.5),
        [np.float64(1), None, np.array(0.5)],
        np.array([1, None, 0.5], object),
    ],
)
def test_numbers_of_every_kind_are_taken(returned):
    values = checked(returned, 3)
    assert values == [1.0, None, 0.5]
    assert {type(value) for value in values} == {float, type(None)}


def test_the_largest_float32_is_the_largest_reward():
    assert checked([-LARGEST], 1) == [-float(np.finfo(np.float32).max)]
    with pytest.raises(ValueError, match="must return finite numbers"):
        checked([np.nextafter(LARGEST, np.inf)], 1)


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"values": [1.0]},
        {"values": ["1.0", 2.0]},
        {"values": [float("nan"), 2.0]},
        {"values": 1.0},
        {"kind": "", "detail": ""},
        {"kind": "deadline", "detail": ""},
        {"kind": ["raised"], "detail": ""},
        {"kind": "raised"},
    ],
)
def test_answer_of_a_worker_is_not_trusted(reply):
    with pytest.raises((ValueError, KeyError, TypeError)):
        parse_answer(reply, 2)


def test_answer_is_read():
    assert parse_answer({"values": [1.0, None]}, 2).values == [1.0, None]
    failed = parse_answer({"kind": "raised", "detail": "no"}, 2)
    assert (failed.kind, failed.detail, list(failed.values)) == ("raised", "no", [])
