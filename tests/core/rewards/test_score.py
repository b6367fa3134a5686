"""Rewards are found, given what they ask for, checked and summed; failures are treated as told."""

import os

import foreign
import numpy as np
import pytest

from jgrpo.config import RewardConfig, RewardFunctionConfig
from jgrpo.data.tasks import Task
from jgrpo.metrics import metric
from jgrpo.rewards.reward import Reward
from jgrpo.rewards.score import begin, build, close, finish, reward_columns, score
from jgrpo.types import Example

TASK = Task(name="mine", train=(), heldout=())
CHAT = [{"role": "user", "content": "?"}]


@pytest.fixture(autouse=True)
def _foreign_is_importable(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))


@pytest.fixture
def make():
    """Builds rewards and ends their processes after the test."""
    made = []

    def make(*specs, task=TASK, **settings):
        made.append(build(specs, task, RewardConfig(**{"workers": 1} | settings)))
        return made[-1]

    yield make
    for rewards in made:
        close(rewards)


def _spec(name, weight=1.0, per="completion", on_failure="mask", failure_value=0.0, **options):
    return RewardFunctionConfig(
        name=name,
        weight=weight,
        options=options,
        per=per,
        on_failure=on_failure,
        failure_value=failure_value,
    )


def _score(rewards, completions=("a", "bb"), prompts=None, group_size=1, step=0, **columns):
    return score(
        rewards,
        prompts=prompts or ["?"] * len(completions),
        completions=completions,
        completion_ids=[[1] * len(text) for text in completions],
        columns=columns,
        group_size=group_size,
        step=step,
    )


def test_rewards_are_summed_with_their_weights(make):
    """Row 0: 2*1 - .5*1 = 1.5; row 1: 2*0 - .5*3 = -1.5."""
    rewards = make(_spec("exact_match", 2.0), _spec("foreign:by_length", -0.5))
    result = _score(rewards, ["a", "abc"], answer=["a", "b"])
    assert result.names == ("exact_match", "foreign:by_length")
    np.testing.assert_array_equal(result.columns, [[1, 1], [0, 3]])
    np.testing.assert_array_equal(result.total, [1.5, -1.5])
    assert result.valid.all()
    assert result.failures == ()


def test_missing_value_is_left_out_of_the_sum(make):
    """Row 0 has an answer; in row 1 only the length counts; alone it is not valid."""
    rewards = make(_spec("exact_match"), _spec("foreign:by_length"))
    result = _score(rewards, answer=["a", ""])
    np.testing.assert_array_equal(result.total, [2, 2])
    assert np.isnan(result.columns[1, 0])
    alone = _score(rewards[:1], answer=["a", ""])
    assert alone.valid.tolist() == [True, False]
    np.testing.assert_array_equal(alone.total, [1, 0])


def test_function_gets_the_columns_that_it_names(make):
    result = _score(make(_spec("foreign:sees")), level=[3, 4], other=[0, 0])
    np.testing.assert_array_equal(result.total, [3, 4])


def test_function_with_kwargs_gets_every_column(make):
    """prompts, completion_ids, level, other, and the three of TRL; completions is its own."""
    result = _score(make(_spec("foreign:all_columns")), level=[3, 4], other=[0, 0])
    np.testing.assert_array_equal(result.total, [7, 7])


def test_option_wins_over_a_column_of_the_same_name(make):
    result = _score(make(_spec("foreign:scaled", factor=3.0)), factor=[0, 0])
    np.testing.assert_array_equal(result.total, [3, 6])


def test_column_never_sets_an_option_of_a_builtin_reward(make):
    result = _score(make(_spec("tagged_number")), ["#1"], answer=["1"], marker=["!"])
    np.testing.assert_array_equal(result.total, [1])


def test_chat_completion_reaches_the_function_as_messages(make):
    rewards = make(_spec("foreign:by_length"), _spec("exact_match"))
    result = _score(rewards, ["abc"], prompts=[CHAT], answer=["abc"])
    np.testing.assert_array_equal(result.columns, [[1, 1]])


def test_task_gives_default_rewards_and_the_default_pattern(make):
    task = Task(
        name="mine", train=(), heldout=(), rewards=(_spec("exact_match"),), format_pattern="a+"
    )
    assert [reward.name for reward in make(task=task)] == ["exact_match"]
    result = _score(make(_spec("regex_format"), task=task), ["aa", "ab"])
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
        ([_spec("no_module:f")], "reward 'no_module:f': importing it raised .*'no_module'"),
        ([_spec("foreign:by_position")], "completions can be given by position only"),
        ([_spec("exact_match", per="group")], "'exact_match': per = 'group' has no effect"),
        ([_spec("length", on_failure="value")], "'length': on_failure = 'value' has no effect"),
        ([_spec("foreign:sees", failure_value=1.0)], "failure_value = 1.0 has no effect with"),
    ],
)
def test_wrong_spec_is_named(make, specs, message):
    with pytest.raises(ValueError, match=message):
        make(*specs)


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
def test_wrong_value_of_a_reward_in_this_process_is_an_error(what, message):
    """Only built-in rewards run here, so it is our mistake and the run ends."""
    spec = _spec("foreign:returns")
    takes = frozenset(["completions"])
    here = Reward(
        spec=spec,
        path="",
        options={"what": what},
        needs=takes,
        takes=takes,
        function=foreign.returns,
    )
    with pytest.raises(ValueError, match=f"reward 'foreign:returns' {message}"):
        _score([here])


def test_missing_column_is_named(make):
    with pytest.raises(ValueError, match=r"reward 'foreign:sees' needs level, .* \(there are:"):
        _score(make(_spec("foreign:sees")))
    with pytest.raises(ValueError, match="reward 'exact_match' needs answer"):
        _score(make(_spec("exact_match")))


def test_column_of_the_wrong_length_is_named(make):
    with pytest.raises(ValueError, match="column 'level' must have an entry for each of 2"):
        _score(make(_spec("foreign:sees")), level=[1])


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


def test_math_verify_runs_isolated(make):
    pytest.importorskip("math_verify")
    rewards = make(_spec("math_verify"), deadline_s=30.0)
    assert rewards[0].isolated
    completions = [r"so $\boxed{\frac{1}{2}}$", "0.5", "the answer is $2$", "no idea", "2"]
    result = _score(rewards, completions, answer=["0.5", r"\frac{1}{2}", "3", "1", ""])
    np.testing.assert_array_equal(result.total, [1, 1, 0, 0, 0])
    assert result.valid.tolist() == [True] * 4 + [False]
    assert result.failures == ()


def test_pattern_of_a_user_is_isolated_and_that_of_a_task_is_not(make):
    """`(a+)+b` on a run of `a` takes longer than the world has stood."""
    task = Task(name="mine", train=(), heldout=(), format_pattern="a+")
    assert not make(_spec("regex_format"), task=task)[0].isolated
    rewards = make(_spec("regex_format", pattern="(a+)+b"), task=task, deadline_s=1.0)
    result = _score(rewards, ["aab", "a" * 60 + "c", "c"])
    np.testing.assert_array_equal(result.total, [1, 0, 0])
    assert result.valid.tolist() == [True, False, True]
    assert [failure.kind for failure in result.failures] == ["deadline"]


def test_isolated_rewards_share_one_pool(make):
    rewards = make(_spec("foreign:by_length"), _spec("exact_match"), _spec("foreign:process"))
    assert rewards[0].pool is rewards[2].pool
    assert rewards[1].pool is None
    result = _score(rewards, answer=["a", "a"])
    assert result.columns[0, 2] != os.getpid()


# How failures are treated. Four completions in two groups; the function fails on the second.

GROUPS = ["a", "bad", "cc", "ddd"]


@pytest.mark.parametrize(
    ("policy", "total", "valid"),
    [
        ({"on_failure": "mask"}, [1, 0, 2, 3], [True, False, True, True]),
        ({"on_failure": "group"}, [1, 0, 2, 3], [False, False, True, True]),
        ({"on_failure": "value", "failure_value": -2.0}, [1, -2, 2, 3], [True] * 4),
    ],
)
def test_failure_is_treated_as_configured(make, policy, total, valid):
    result = _score(make(_spec("foreign:shaky", **policy)), GROUPS, group_size=2)
    np.testing.assert_array_equal(result.total, total)
    assert result.valid.tolist() == valid
    assert result.failed["foreign:shaky"].tolist() == [False, True, False, False]


def test_completion_on_which_one_of_two_rewards_fails_is_not_trained_on(make):
    """Its sum lacks a term, so it cannot be compared with the others of its group."""
    rewards = make(_spec("foreign:shaky"), _spec("exact_match"))
    result = _score(rewards, GROUPS, group_size=2, answer=["bad"] * 4)
    np.testing.assert_array_equal(result.columns[:, 1], [0, 1, 0, 0])
    assert result.valid.tolist() == [True, False, True, True]


def test_none_on_purpose_is_no_failure(make):
    result = _score(make(_spec("foreign:pedantic"), _spec("exact_match")), GROUPS, answer=["a"] * 4)
    assert np.isnan(result.columns[1, 0])
    assert result.valid.all()
    assert result.failures == ()
    assert not result.failed["foreign:pedantic"].any()


def test_failure_says_what_it_happened_with(make):
    rewards = make(_spec("foreign:shaky"))
    (failure,) = _score(rewards, GROUPS, prompts=["p", "q", "r", "s"], level=[1, 2, 3, 4]).failures
    assert (failure.function, failure.kind, failure.completions) == ("foreign:shaky", "raised", 1)
    assert failure.detail.startswith("ValueError: a bad completion (")
    assert (failure.prompt, failure.completion, failure.columns) == ("q", "bad", {"level": 2})


def test_failed_call_of_several_completions_fails_them_all(make):
    rewards = make(_spec("foreign:shaky", per="group"))
    result = _score(rewards, GROUPS, group_size=2)
    assert result.failed["foreign:shaky"].tolist() == [True, True, False, False]
    assert [failure.completions for failure in result.failures] == [2]


def test_metrics_count_failures_and_have_rows(make):
    rewards = make(_spec("foreign:shaky"), _spec("foreign:by_length"), _spec("exact_match"))
    metrics = _score(rewards, GROUPS, group_size=2, answer=["a"] * 4).metrics()
    assert metrics["reward/foreign:shaky/failures"] == 1
    assert metrics["reward/foreign:by_length/failures"] == 0
    assert metrics["reward/failures"] == 1
    assert metrics["reward/masked_fraction"] == 0.25
    assert metrics["reward/calls_per_s"] > 0
    assert all(metric(name) for name in metrics)
    assert "reward/exact_match/failures" not in metrics


# Calls of several completions.


@pytest.mark.parametrize(
    ("per", "longest", "together"),
    [
        ("completion", [1, 1, 1, 1], [1, 1, 1, 1]),
        ("group", [0, 1, 0, 1], [2, 2, 2, 2]),
        ("step", [0, 1, 0, 1], [4, 4, 4, 4]),
    ],
)
def test_function_gets_as_many_completions_as_it_asks_for(make, per, longest, together):
    rewards = make(_spec("foreign:longest", per=per), _spec("foreign:calls_together", per=per))
    result = _score(rewards, ["a", "bbb", "cc", "ddd"], group_size=2)
    np.testing.assert_array_equal(result.columns.T, [longest, together])


# Functions written for TRL.


TRL = {
    "trl_all_by_name": [1, 2, 3, 4],
    "trl_reads_kwargs": [0, 1, 0, 0],
    "trl_some_have_no_reward": [1, np.nan, 1, np.nan],
    "trl_async": [1, 2, 3, 4],
    "trl_state": [7, 7, 7, 7],
    "trl_logs": [1, 1, 1, 1],
    "trl_array": [0.5, 1, 1.5, 2],
}


@pytest.mark.parametrize("per", ["completion", "group", "step"])
def test_functions_written_for_trl_work_unchanged(make, per):
    result = _score(
        make(*(_spec(f"foreign:{name}", per=per) for name in TRL)),
        ["a", "bb", "ccc", "dddd"],
        group_size=2,
        step=7,
        answer=["bb"] * 4,
        kind=["math", "code"] * 2,
    )
    assert result.failures == ()
    columns = dict(zip(result.names, result.columns.T.tolist(), strict=True))
    for name, expected in TRL.items():
        np.testing.assert_array_equal(columns[f"foreign:{name}"], expected, err_msg=name)


def test_chat_function_written_for_trl_works_unchanged(make):
    rewards = make(_spec("foreign:trl_chat_format"))
    result = _score(rewards, ["<think>x</think>", "no"], prompts=[CHAT, CHAT])
    np.testing.assert_array_equal(result.total, [1, 0])


# Completions that come one by one.

EXAMPLES = [Example(prompt="?", columns={"slow": s}) for s in (0.3, 0.2, 0.1, 0.0)]


def test_order_in_which_completions_come_and_calls_end_changes_nothing(make):
    """With two workers the calls end in another order than they began in."""
    rewards = make(
        _spec("foreign:backwards"), _spec("foreign:longest", per="group", weight=0.1), workers=2
    )
    texts = ["a", "bbb", "cc", "dddd"]
    results = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        scoring = begin(rewards, EXAMPLES, group_size=1)
        for row in order:
            scoring.add(row, texts[row], [1] * len(texts[row]))
        results.append(finish(scoring))
    np.testing.assert_array_equal(results[0].columns, [[1, 1], [3, 1], [2, 1], [4, 1]])
    for field in ("columns", "total", "valid"):
        np.testing.assert_array_equal(getattr(results[0], field), getattr(results[1], field))


def test_completion_added_again_is_scored_once_and_another_takes_its_place(make):
    rewards = make(_spec("foreign:by_length"), _spec("foreign:longest", per="group"))
    scoring = begin(rewards, [Example(prompt="?")] * 2, group_size=1)
    scoring.add(0, "aaaa", [1, 2])
    scoring.add(0, "aaaa", [1, 2])
    scoring.add(1, "b", [1])
    scoring.add(0, "cc", [1, 3])
    result = finish(scoring)
    np.testing.assert_array_equal(result.columns, [[2, 1], [1, 1]])
    assert result.calls == 4


def test_slow_reward_does_not_block_the_giver(make):
    """Adding returns while the calls sleep; a test that waited for them would see them done."""
    rewards = make(_spec("foreign:backwards"))
    scoring = begin(rewards, [Example(prompt="?", columns={"slow": 0.5})] * 2, group_size=1)
    scoring.add(0, "a", [1])
    scoring.add(1, "bb", [1])
    assert not any(future.done() for future in scoring._pending.values())
    np.testing.assert_array_equal(finish(scoring).total, [1, 2])


def test_empty_places_are_never_shown_to_a_reward(make):
    """Three prompts with 2, 1 and 3 completions; a built-in and isolated rewards of all sizes."""
    rewards = make(
        _spec("foreign:by_length"),
        _spec("foreign:calls_together", per="group"),
        _spec("foreign:longest", per="step"),
        _spec("length", max_tokens=8),
    )
    scoring = begin(rewards, [Example(prompt="?")] * 3, group_size=3)
    texts = {0: "a", 1: "bb", 3: "cccc", 6: "d", 7: "eee", 8: "ff"}
    for row, text in texts.items():
        scoring.add(row, text, [1] * len(text))
    result = finish(scoring)
    asked = [row in texts for row in range(9)]
    np.testing.assert_array_equal(result.asked, asked)
    np.testing.assert_array_equal(result.valid, asked)
    assert np.isnan(result.columns[~result.asked]).all()
    assert not result.total[~result.asked].any()
    by_length, together, longest, length = result.columns[result.asked].T
    np.testing.assert_array_equal(by_length, [1, 2, 4, 1, 3, 2])
    np.testing.assert_array_equal(together, [2, 2, 1, 3, 3, 3])
    np.testing.assert_array_equal(longest, [0, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(length, 1 - np.array([1, 2, 4, 1, 3, 2]) / 8)
    assert result.calls == 6 + 3 + 1
    assert result.metrics()["reward/masked_fraction"] == 0
    assert all(failed.shape == (6,) for failed in result.failed.values())


def test_what_has_come_so_far_can_be_asked_for_and_is_not_scored_again(make):
    rewards = make(_spec("foreign:by_length"))
    scoring = begin(rewards, [Example(prompt="?")], group_size=3)
    scoring.add(0, "aa", [1])
    first = finish(scoring)
    assert first.asked.tolist() == [True, False, False]
    scoring.add(1, "b", [1])
    second = finish(scoring)
    np.testing.assert_array_equal(second.columns[:2], [[2], [1]])
    assert (first.calls, second.calls) == (1, 2)
