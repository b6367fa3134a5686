"""The worker pool outlives whatever its functions do, and leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hostile
import pytest

from jgrpo.rewards.calls import Call
from jgrpo.rewards.pool import Pool

HERE = os.path.dirname(__file__)
WAIT_S = 60.0

KINDS = {
    "raises": "raised",
    "raises_unprintable": "raised",
    "raises_surrogate": "raised",
    "quits": "raised",
    "interrupts": "raised",
    "recurses": "raised",
    "raises_later": "raised",
    "returns_nothing": "value",
    "returns_nan": "value",
    "returns_inf": "value",
    "returns_double": "value",
    "returns_huge_int": "value",
    "returns_text": "value",
    "returns_string": "value",
    "returns_complex": "value",
    "returns_number": "value",
    "returns_dict": "value",
    "returns_lambda": "value",
    "returns_generator": "value",
    "returns_too_few": "value",
    "returns_a_million": "value",
    "returns_ten_megabytes": "value",
    "returns_liar": "value",
    "hangs": "deadline",
    "hangs_deaf": "deadline",
    "hangs_in_regex": "deadline",
    "hangs_in_c": "deadline",
    "hangs_swallowing": "deadline",
    "hangs_stopped": "deadline",
    "hangs_async": "deadline",
    "hangs_on_return": "deadline",
    "exits": "died",
    "exits_3": "died",
    "segfaults": "died",
    "aborts": "died",
    "kills_itself": "died",
    "closes_everything": "died",
    "writes_junk": "died",
    "promises_a_petabyte": "died",
    "forges_an_answer": "died",
    "breaks_its_worker": "died",
    "shuts_its_socket": "died",
    "hoards": "memory",
    "hoards_in_one_piece": "memory",
    "sets_an_alarm": "",
    "leaves_a_thread": "",
    "makes_a_mess": "",
}
FORKING = {
    "forks": "",
    "forks_and_both_return": "",
    "forks_and_child_raises": "",
    "daemonises": "",
    "starts_a_program": "",
    "daemonises_and_hangs": "deadline",
    "daemonises_and_exits": "died",
    "breeds": "deadline",
}
OTHERS = ("good", "draws", "modules", "pid", "naps", "kills_the_template")


@pytest.fixture(scope="module")
def importable():
    """Workers find `hostile.py` as users' modules are found: on the path of the trainer."""
    sys.path.insert(0, HERE)
    yield
    sys.path.remove(HERE)


def _pool(*names, **settings):
    defaults = {"num_workers": 2, "deadline_s": 1.5, "memory_mb": 256}
    return Pool({f"hostile:{name}": "" for name in names}, **defaults | settings)


@pytest.fixture(scope="module")
def pool(importable):
    with _pool(*KINDS, *FORKING, *OTHERS) as made:
        yield made


def _submit(pool, name, text="a", **call):
    arguments = {"completions": [text], **call.pop("arguments", {})}
    return pool.submit(Call(function=f"hostile:{name}", arguments=arguments, **call))


def _outcomes(futures):
    return [future.result(WAIT_S) for future in futures]


def _living(pids):
    def lives(pid):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    return [pid for pid in pids if lives(pid)]


def _all_end(pids):
    """Whether the processes end soon: the kernel takes a moment after a kill."""
    give_up = time.monotonic() + WAIT_S
    while _living(pids) and time.monotonic() < give_up:
        time.sleep(0.01)
    return not _living(pids)


def test_each_failure_is_named_and_costs_its_own_call_only(pool):
    """47 hostile functions, an innocent call after each; then everything works as before."""
    futures = [(_submit(pool, name), _submit(pool, "good", name)) for name in KINDS]
    bad = dict(zip(KINDS, _outcomes(f for f, _ in futures), strict=True))
    assert {name: outcome.kind for name, outcome in bad.items()} == KINDS
    assert [o.values for o in _outcomes(f for _, f in futures)] == [[len(n)] for n in KINDS]
    assert all(outcome.detail for name, outcome in bad.items() if KINDS[name])
    assert "'no such thing' (" in bad["raises"].detail
    assert "hostile.py:" in bad["raises"].detail
    assert "must return finite numbers or None, got nan" in bad["returns_nan"].detail
    assert bad["exits_3"].detail == "its process ended with exit code 3"
    assert bad["segfaults"].detail == "its process was killed by signal 11"
    assert bad["hangs_in_c"].detail == "took longer than 1.5 s"
    assert max(len(outcome.detail) for outcome in bad.values()) < 1000


@pytest.mark.skipif(sys.platform != "linux", reason="descendants are followed on Linux only")
@pytest.mark.parametrize("name", FORKING)
def test_no_process_is_left_behind(pool, name, tmp_path):
    note = tmp_path / "pids"
    outcome = _submit(pool, name, arguments={"note": [str(note)]}).result(WAIT_S)
    assert outcome.kind == FORKING[name]
    assert list(outcome.values) == ([] if FORKING[name] else [1.0])
    pids = [int(line) for line in note.read_text().split()]
    assert pids
    assert os.getpid() not in pids
    assert _all_end(pids)
    assert _submit(pool, "good").result(WAIT_S).values == [1.0]


def test_results_belong_to_their_calls_whatever_the_order(pool):
    futures = [_submit(pool, "good", "x" * (i % 7)) for i in range(200)]
    assert [o.values for o in _outcomes(futures)] == [[i % 7] for i in range(200)]


def test_random_numbers_depend_on_the_call_and_not_on_the_worker(pool):
    first, second, other = (
        [o.values for o in _outcomes([_submit(pool, "draws", seed=s) for s in seeds])]
        for seeds in ("abcd", "dcba", "efgh")
    )
    assert first == second[::-1]
    assert not {str(v) for v in first} & {str(v) for v in other}


def test_workers_load_nothing_of_the_trainer(pool):
    call = {"arguments": {"completions": ["a", "b", "c"]}, "count": 3}
    assert _submit(pool, "modules", **call).result(WAIT_S).values == [0.0, 0.0, 0.0]


def test_many_calls_of_which_some_hang_end_and_the_others_are_right(importable):
    """200 calls, every twentieth hangs; the deadline is half a second."""
    with _pool("good", "hangs", deadline_s=0.5) as made:
        futures = [_submit(made, "good" if i % 20 else "hangs", "x" * i) for i in range(200)]
        outcomes = _outcomes(futures)
    assert [i for i, o in enumerate(outcomes) if o.kind == "deadline"] == list(range(0, 200, 20))
    assert all(o.values == [i] for i, o in enumerate(outcomes) if i % 20)


def test_deadline_grows_with_the_completions_of_a_call(importable):
    """A call that naps 0.05 s has 0.01 s for one completion, and 10 s for a thousand."""
    with _pool("naps", deadline_s=0.01) as made:
        many = {"arguments": {"completions": ["a"] * 1000}, "count": 1000}
        assert _submit(made, "naps").result(WAIT_S).kind == "deadline"
        assert _submit(made, "naps", **many).result(WAIT_S).kind == ""


def test_large_arguments_arrive_whole(pool):
    text = "x" * 20_000_000
    assert _submit(pool, "good", text).result(WAIT_S).values == [len(text)]


def test_worker_that_ended_between_calls_is_replaced(pool):
    for _ in range(3):
        pid = int(_submit(pool, "pid").result(WAIT_S).values[0])
        os.kill(pid, signal.SIGKILL)
        assert _all_end([pid])
    assert _submit(pool, "good").result(WAIT_S).values == [1.0]


def test_pool_recovers_from_the_death_of_its_template(importable, caplog):
    with _pool("good", "kills_the_template", deadline_s=30.0) as made:
        assert _submit(made, "kills_the_template").result(WAIT_S).kind == "died"
        assert _submit(made, "good").result(WAIT_S).values == [1.0]
    assert "starting another" in caplog.text


def test_pool_that_keeps_dying_gives_up(importable):
    with _pool("kills_the_template", deadline_s=30.0) as made:
        futures = [_submit(made, "kills_the_template") for _ in range(20)]
        with pytest.raises(RuntimeError, match="ended, 3 times without an answer"):
            _outcomes(futures)


def test_close_ends_all_processes_and_all_waiting(importable):
    made = _pool("hangs", "pid", deadline_s=600.0)
    made.start()
    pids = {int(o.values[0]) for o in _outcomes([_submit(made, "pid") for _ in range(8)])}
    futures = [_submit(made, "hangs") for _ in range(4)]
    made.close()
    made.close()
    assert _all_end(pids)
    for future in futures:
        with pytest.raises(RuntimeError, match="was closed"):
            future.result(WAIT_S)
    with pytest.raises(RuntimeError, match="is closed"):
        _submit(made, "pid")


def test_pool_that_never_started_can_be_closed():
    _pool("good").close()


_DOOMED = """
import sys, time
from jgrpo.rewards.calls import Call
from jgrpo.rewards.pool import Pool
pool = Pool({"hostile:pid": "", "hostile:hangs_in_c": "", "hostile:hangs_deaf": ""},
            num_workers=2, deadline_s=600.0)
pool.start()
ask = lambda name: pool.submit(Call(function=f"hostile:{name}", arguments={"completions": ["a"]}))
print(sorted({int(f.result().values[0]) for f in [ask("pid") for _ in range(20)]}), flush=True)
ask("hangs_in_c"), ask("hangs_deaf")
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells workers on Linux only")
def test_workers_end_when_the_trainer_is_killed():
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, HERE])}
    command = [sys.executable, "-c", _DOOMED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as trainer:
        assert trainer.stdout is not None
        pids = [int(word) for word in trainer.stdout.readline().strip("[]\n").split(",")]
        assert _living(pids) == pids
        time.sleep(0.2)  # the workers are at work
        trainer.kill()
    assert _all_end(pids)


def test_arguments_that_cannot_be_pickled_are_refused(pool):
    with pytest.raises(ValueError, match="'hostile:good': its columns cannot be sent"):
        _submit(pool, "good", arguments={"column": [lambda: 1]})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nowhere_at_all", "importing it raised ValueError: .*nowhere_at_all"),
        ("1 / 0", "importing it raised ZeroDivisionError: division by zero"),
        ("def f(:", "importing it raised SyntaxError"),
        ("raise SystemExit(4)", "importing it raised SystemExit: 4"),
        ("import os; os._exit(7)", r"importing it ended the process \(exit code 7\)"),
        ("import ctypes; ctypes.string_at(0)", r"ended the process \(exit code -11\)"),
        ("f = 3", "has no function 'f'"),
        ("", "has no function 'f'"),
    ],
)
def test_function_that_cannot_be_imported_is_named_at_the_start(
    source, message, tmp_path, monkeypatch
):
    (tmp_path / "broken_reward.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Pool({"broken_reward:f": ""}, num_workers=1, deadline_s=5.0)
    with pytest.raises(ValueError, match=rf"reward 'broken_reward:f': .*{message}"):
        made.start()
    made.close()


def test_import_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "endless_reward.py").write_text("while True: pass")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("jgrpo.rewards.template.START_DEADLINE_S", 1.0)
    made = Pool({"endless_reward:f": ""}, num_workers=1, deadline_s=5.0)
    with pytest.raises(ValueError, match="'endless_reward:f': importing it took longer than 1 s"):
        made.start()
    made.close()


def test_every_hostile_function_is_in_a_table():
    own = {
        name
        for name, value in vars(hostile).items()
        if callable(value)
        and getattr(value, "__module__", "") == "hostile"
        and not name.startswith("_")
    }
    assert own == {*KINDS, *FORKING, *OTHERS}
