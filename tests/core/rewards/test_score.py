"""Rewards are found, given what they ask for, checked and summed."""

import os

import numpy as np
import pytest

from jgrpo.config import RewardConfig, RewardFunctionConfig
from jgrpo.data.tasks import Task
from jgrpo.rewards.score import build, close, reward_columns, score
from jgrpo.types import Example

TASK = Task(name="mine", train=(), heldout=())
CHAT = [{"role": "user", "content": "?"}]


@pytest.fixture(autouse=True)
def _foreign_is_importable(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))


def _spec(name, weight=1.0, **options):
    return RewardFunctionConfig(name=name, weight=weight, options=options)


def _build(*specs, task=TASK, **settings):
    return build(specs, task, RewardConfig(**settings))


def _score(rewards, completions=("a", "bb"), prompts=None, **columns):
    return score(
        rewards,
        prompts=prompts or ["?"] * len(completions),
        completions=completions,
        completion_ids=[[1] * len(text) for text in completions],
        columns=columns,
    )


def test_rewards_are_summed_with_their_weights():
    """Row 0: 2*1 - .5*1 = 1.5; row 1: 2*0 - .5*3 = -1.5."""
    rewards = _build(_spec("exact_match", 2.0), _spec("foreign:by_length", -0.5))
    result = _score(rewards, ["a", "abc"], answer=["a", "b"])
    assert result.names == ("exact_match", "foreign:by_length")
    np.testing.assert_array_equal(result.columns, [[1, 1], [0, 3]])
    np.testing.assert_array_equal(result.total, [1.5, -1.5])
    assert result.valid.all()
    assert result.failures == {}


def test_missing_value_is_left_out_of_the_sum():
    """Row 0 has an answer; in row 1 only the length counts; alone it is not valid."""
    rewards = _build(_spec("exact_match"), _spec("foreign:by_length"))
    result = _score(rewards, answer=["a", ""])
    np.testing.assert_array_equal(result.total, [2, 2])
    assert np.isnan(result.columns[1, 0])
    alone = _score(rewards[:1], answer=["a", ""])
    assert alone.valid.tolist() == [True, False]
    np.testing.assert_array_equal(alone.total, [1, 0])


def test_function_gets_the_columns_that_it_names():
    result = _score(_build(_spec("foreign:sees")), level=[3, 4], other=[0, 0])
    np.testing.assert_array_equal(result.total, [3, 4])


def test_function_with_kwargs_gets_every_column():
    """prompts, completion_ids, level, other; completions is its own argument."""
    result = _score(_build(_spec("foreign:all_columns")), level=[3, 4], other=[0, 0])
    np.testing.assert_array_equal(result.total, [4, 4])


def test_option_wins_over_a_column_of_the_same_name():
    result = _score(_build(_spec("foreign:scaled", factor=3.0)), factor=[0, 0])
    np.testing.assert_array_equal(result.total, [3, 6])


def test_column_never_sets_an_option_of_a_builtin_reward():
    result = _score(_build(_spec("tagged_number")), ["#1"], answer=["1"], marker=["!"])
    np.testing.assert_array_equal(result.total, [1])


def test_chat_completion_reaches_the_function_as_messages():
    rewards = _build(_spec("foreign:by_length"), _spec("exact_match"))
    result = _score(rewards, ["abc"], prompts=[CHAT], answer=["abc"])
    np.testing.assert_array_equal(result.columns, [[1, 1]])


def test_task_gives_default_rewards_and_the_default_pattern():
    task = Task(
        name="mine", train=(), heldout=(), rewards=(_spec("exact_match"),), format_pattern="a+"
    )
    assert [reward.name for reward in _build(task=task)] == ["exact_match"]
    result = _score(_build(_spec("regex_format"), task=task), ["aa", "ab"])
    np.testing.assert_array_equal(result.total, [1, 0])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "task 'mine' has no rewards of its own"),
        ([_spec("exact_mach")], "must be one of exact_match, .* did you mean 'exact_match'"),
        ([_spec("exact_match"), _spec("exact_match")], "'exact_match' is listed twice"),
        ([_spec("exact_match", cases="x")], "unknown option 'cases'; did you mean 'case'"),
        ([_spec("exact_match", answer="x")], "unknown option 'answer'"),
        ([_spec("exact_match", case="fold")], "case: .*'keep' or 'ignore', got 'fold'"),
        ([_spec("tagged_number", marker="")], "marker: .* at least 1 character"),
        ([_spec("length", max_tokens=0)], "max_tokens: .* greater than or equal to 1, got 0"),
        ([_spec("length", max_tokens=True)], "max_tokens: .* valid integer, got True"),
        ([_spec("regex_format", pattern="(")], "pattern: no regular expression: .* got '\\('"),
        ([_spec("regex_format")], "task 'mine' has no form"),
        ([_spec("foreign:scaled", fctor=1)], "unknown option 'fctor'; did you mean 'factor'"),
        ([_spec("foreign:nothing")], "has no function 'nothing'"),
        ([_spec("no_module:f")], "cannot import 'no_module'"),
    ],
)
def test_wrong_spec_is_named(specs, message):
    with pytest.raises(ValueError, match=message):
        _build(*specs)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "must return finite numbers or None, got nan"),
        ("huge", "must return finite numbers or None"),
        ("text", "must return finite numbers or None, got '1'"),
        ("short", "must return 2 values, got 1"),
        ("number", "must return a list, got float"),
    ],
)
def test_wrong_return_value_names_the_function(what, message):
    with pytest.raises(ValueError, match=f"reward 'foreign:returns' {message}"):
        _score(_build(_spec("foreign:returns", what=what)))


def test_missing_column_is_named():
    with pytest.raises(ValueError, match=r"reward 'foreign:sees' needs level, .* \(there are:"):
        _score(_build(_spec("foreign:sees")))
    with pytest.raises(ValueError, match="reward 'exact_match' needs answer"):
        _score(_build(_spec("exact_match")))


def test_column_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match="column 'level' must have an entry for each of 2"):
        _score(_build(_spec("foreign:sees")), level=[1])


def test_columns_of_a_rollout_repeat_each_example_for_its_group():
    examples = [
        Example(prompt="p", answer="1", solution="s", columns={"answer": "raw", "level": 3}),
        Example(prompt="q", answer="2", columns={"kind": "x"}),
    ]
    assert reward_columns(examples, 2) == {
        "answer": ["1", "1", "2", "2"],
        "level": [3, 3, None, None],
        "kind": [None, None, "x", "x"],
        "solution": ["s", "s", None, None],
    }


def test_math_verify_runs_isolated():
    pytest.importorskip("math_verify")
    rewards = _build(_spec("math_verify"), workers=1, deadline_s=30.0)
    try:
        assert rewards[0].isolated
        completions = [r"so $\boxed{\frac{1}{2}}$", "0.5", "the answer is $2$", "no idea", "2"]
        result = _score(rewards, completions, answer=["0.5", r"\frac{1}{2}", "3", "1", ""])
    finally:
        close(rewards)
    np.testing.assert_array_equal(result.total, [1, 1, 0, 0, 0])
    assert result.valid.tolist() == [True] * 4 + [False]
    assert result.failures == {}


def test_item_that_fails_in_a_worker_has_no_value_and_is_counted():
    """The deadline is too short for any item, so each costs a worker and gives nothing."""
    pytest.importorskip("math_verify")
    rewards = _build(_spec("math_verify"), _spec("exact_match"), workers=2, deadline_s=1e-6)
    try:
        result = _score(rewards, ["1", "2"], answer=["1", "3"])
    finally:
        close(rewards)
    assert result.failures == {"math_verify": 2}
    assert np.isnan(result.columns[:, 0]).all()
    np.testing.assert_array_equal(result.total, [1, 0])
