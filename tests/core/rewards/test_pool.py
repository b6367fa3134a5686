"""The worker pool outlives whatever its functions do."""

import os

import pytest

from jgrpo.rewards.pool import Pool, resolve

BEHAVE = "foreign:behave"


@pytest.fixture(scope="module", autouse=True)
def _importable():
    """Workers find `foreign.py` as users' modules are found: on the path."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.path.dirname(__file__)
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def pool():
    with Pool([BEHAVE], num_workers=2, deadline_s=1.0) as made:
        yield made


def _run(pool, *ways):
    return pool.map(BEHAVE, [{"how": way} for way in ways])


def test_results_keep_the_order_of_the_items(pool):
    outcomes = _run(pool, *map(str, range(20)))
    assert [outcome.value for outcome in outcomes] == list(map(str, range(20)))
    assert {outcome.failure for outcome in outcomes} == {""}


def test_each_failure_costs_its_own_item_only(pool):
    outcomes = _run(pool, "a", "hang", "b", "exit", "raise", "c", "sleep", "quit", "d")
    assert [outcome.value for outcome in outcomes] == [
        *("a", None, "b", None, None, "c", None, None, "d")
    ]
    assert [outcome.failure for outcome in outcomes] == [
        *("", "deadline", "", "died", "raised", "", "deadline", "died", "")
    ]
    assert "exit code 3" in outcomes[3].detail
    assert "no such thing" in outcomes[4].detail


def test_endless_loop_is_killed(pool):
    outcomes = _run(pool, "pid", "pid", "hang", "hang")
    after = _run(pool, "a", "b")
    assert [outcome.failure for outcome in outcomes[2:]] == ["deadline"] * 2
    assert [outcome.value for outcome in after] == ["a", "b"]


def test_workers_are_kept_between_calls_and_run_outside_this_process(pool):
    first = {outcome.value for outcome in _run(pool, *["pid"] * 8)}
    second = {outcome.value for outcome in _run(pool, *["pid"] * 8)}
    assert first & second
    assert len(first | second) <= 2
    assert os.getpid() not in first


def test_worker_that_ended_between_calls_is_replaced(pool):
    _run(pool, "a", "b")
    for worker in pool._workers:
        os.kill(worker.process.pid, 9)
        worker.process.join(5)
    assert [outcome.value for outcome in _run(pool, "a", "b")] == ["a", "b"]


def test_nothing_starts_before_it_is_needed_and_close_ends_all():
    made = Pool([BEHAVE], num_workers=1, deadline_s=5.0)
    assert made.map(BEHAVE, []) == []
    assert made._workers == []
    pid = _run(made, "pid")[0].value
    made.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_worker_that_cannot_import_says_so():
    with (
        Pool(["nowhere:f"], num_workers=1, deadline_s=5.0) as made,
        pytest.raises(RuntimeError, match=r"could not start: .*'nowhere'"),
    ):
        made.map("nowhere:f", [{}])


def test_unknown_function_is_refused(pool):
    with pytest.raises(ValueError, match="function must be one of"):
        pool.map("os:getcwd", [{}])


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
