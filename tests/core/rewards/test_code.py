"""Programs are judged by what their functions return, and by nothing else."""

import os
import shutil
import time

import hostile_code
import numpy as np
import pytest

from jgrpo.config import RewardConfig, RewardFunctionConfig
from jgrpo.data.tasks import Task
from jgrpo.rewards import processes
from jgrpo.rewards.code import Grade, code_tests, grade, instrument, program_of
from jgrpo.rewards.plain import Limits
from jgrpo.rewards.sandbox import find_sandbox
from jgrpo.rewards.score import build, close, score

pytest.importorskip("pydantic_monty")

ADD = "assert add(2, 3) == 5\nassert add(-1, 1) == 0\nassert add(10**6, 1) == 1000001"
BWRAP = pytest.param(
    "bwrap", marks=pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bwrap")
)
SANDBOXES = pytest.mark.parametrize("place", ["monty", BWRAP])


def _block(code):
    return f"Here it is:\n```python\n{code}\n```\nDone."


def _value(completion, tests=ADD, functions=("add",), stub="", **options):
    values = code_tests(
        completions=[completion], tests=[tests], functions=[functions], stub=[stub], **options
    )
    return values[0]


@pytest.fixture
def canary(tmp_path):
    """A file that must stay as it is; and no process may stay at all."""
    if processes.LINUX:
        processes.inherit_orphans()
    before = set(processes.children())
    path = tmp_path / "canary.txt"
    path.write_text("5\n0\n1000001\n")
    yield path
    assert path.read_text() == "5\n0\n1000001\n"
    assert os.listdir(tmp_path) == ["canary.txt"]
    deadline = time.monotonic() + 10
    while left := set(processes.children()) - before:
        assert time.monotonic() < deadline, f"processes are left: {left}"
        time.sleep(0.05)


@SANDBOXES
@pytest.mark.parametrize("name", hostile_code.PROGRAMS)
def test_hostile_program_scores_nothing_and_harms_nothing(place, name, canary, capfd):
    source = hostile_code.PROGRAMS[name].replace("@CANARY@", str(canary))
    found = grade(
        program_of(_block(source), ["add"], ""),
        instrument(ADD, ["add"]),
        find_sandbox(place),
        Limits(time_s=0.4, memory_bytes=64 << 20),
        stop=False,
    )
    assert found.score("all") == 0.0
    assert found.score("fraction") < 1.0
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", hostile_code.COMPLETIONS)
def test_hostile_completion_scores_nothing(name, canary):
    assert _value(hostile_code.COMPLETIONS[name], time_limit_s=0.5) == 0.0


HONEST = {
    "plain": (hostile_code.RIGHT, ADD),
    "prints": (
        "def add(a, b):\n    print('adding', a, b)\n    return a + b\nprint(add(1, 2))",
        ADD,
    ),
    "hides_builtins": ("list = [1]\nstr = dict = int = 3\nmax = min\n" + hostile_code.RIGHT, ADD),
    "named_like_ours": (
        "def encode(x): return x\ndef write(x): return 0\n" + hostile_code.RIGHT,
        ADD,
    ),
    "helper": ("def plus(x, y):\n    return x + y\nadd = lambda a, b: plus(a, b)", ADD),
    "class_inside": (
        "class Sum:\n    def __init__(self): self.n = 0\n    def put(self, x): self.n += x\n"
        "def add(a, b):\n    s = Sum()\n    s.put(a)\n    s.put(b)\n    return s.n",
        ADD,
    ),
    "remembers": ("seen = {}\ndef add(a, b):\n    seen[a] = b\n    return a + seen[a]", ADD),
    "recursive": (
        "def add(n, _=0): return n if n < 2 else add(n - 1) + add(n - 2)",
        "assert add(15) == 610",
    ),
    "collections": (
        "from collections import Counter\ndef add(s): return Counter(s)",
        "assert add('aab') == {'a': 2, 'b': 1}",
    ),
    "kinds": (
        "def add(x): return x",
        "for x in [None, True, 1, 1.5, 'é\\n', b'x', [1], (1, [2]), {3}, {1: (2,)}, 10**40, 1j]:\n"
        "    assert add(x) == x\n    assert type(add(x)) == type(x)",
    ),
    "float": (
        "def add(a, b): return a + b",
        "assert abs(add(0.1, 0.2) - 0.3) < 1e-9\nimport math\n"
        "assert math.isclose(add(1e9, 1), 1000000001.0)",
    ),
    "named_arguments": (
        "def add(*items, start=0): return sum(items, start)",
        "assert add(1, 2, start=3) == 6",
    ),
    "test_with_loop": (
        hostile_code.RIGHT,
        "def check(candidate):\n    import random\n    for _ in range(50):\n"
        "        x = random.randint(0, 99)\n        assert candidate(x, x) == 2 * x, 'twice'\n"
        "check(add)",
    ),
    "named_like_a_builtin": ("def sum(a, b): return a * b", "assert sum(3, 4) == 12"),
}


@SANDBOXES
@pytest.mark.parametrize("name", HONEST)
def test_honest_program_scores_one(place, name):
    source, tests = HONEST[name]
    functions = ["sum"] if "sum(3" in tests else ["add"]
    assert _value(_block(source), tests, functions, sandbox=place) == 1.0


@SANDBOXES
def test_argument_changed_by_the_program_stays_as_it_was(place):
    source = "def add(items):\n    items.append(1)\n    return len(items)"
    assert _value(_block(source), "x = [1]\nassert add(x) == 2\nassert x == [1]", sandbox=place)


@pytest.mark.parametrize("tests", ["assert add(1, 2) == (1, 2)", "assert add(1, 2) == '[1, 2]'"])
def test_value_of_another_kind_is_wrong(tests):
    assert _value(_block("def add(a, b): return [a, b]"), tests) == 0.0


STUB = "from math import sqrt\n\ndef root(x: float) -> float:\n    '''The root.'''\n"
BODY = "    return sqrt(x)\n"


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        f"{BODY}\n\nprint(root(4))\nmore words",
        f"{BODY}\n# Next task\n\ndef other():",
        f"```python\n{BODY}```",
        "```python\ndef root(x):\n    return sqrt(x)\n```",
        "```\nimport math\ndef root(x):\n    return math.sqrt(x)",
        "````py\r\ndef root(x):\r\n    return sqrt(x)\r\n````",
        "def root(x):\n    return x ** 0.5",
        f"```python\n{STUB}{BODY}```\nFor example:\n```python\nprint(root(9))\n```",
        f"```text\nwords\n```\n```Python\n{STUB}{BODY}```\n```\nroot(9) -> 3\n```",
        [{"role": "assistant", "content": f"```python\n{STUB}{BODY}```"}],
    ],
)
def test_program_is_found_in_the_completion(completion):
    assert _value(completion, "assert root(9.0) == 3.0", ["root"], STUB) == 1.0


def test_program_by_hand():
    assert program_of("a\n```python\nx = 1\n```\nb", ["f"], "") == "x = 1\n"
    assert program_of("x = 1", ["f"], "") == "x = 1"
    assert program_of("  return 1\nf()", ["f"], "def f():\n") == "def f():\n  return 1\n"
    two = "```python\ndef f(): 1\n```\n```python\ndef f(): 2\n```\n```python\nf()\n```"
    assert program_of(two, ["f"], "") == "def f(): 2\n"


def test_fraction_counts_assertions():
    """Right for 2 + 3 and -1 + 1, wrong for the third."""
    half = _block("def add(a, b): return a + b if a < 100 else 0")
    assert _value(half, score="fraction") == pytest.approx(2 / 3)
    assert _value(half) == 0.0


def test_fraction_of_tests_that_end_early_counts_the_rest_as_failed():
    """The second statement raises after one assertion of three."""
    tests = "assert add(1, 1) == 2\nx = add(5, 0) + 1\nassert x == 6\nassert add(2, 0) == 2"
    source = "def add(a, b): return a + b if a < 5 else None"
    assert _value(_block(source), tests, score="fraction") == pytest.approx(1 / 3)


def test_score_of_a_grade_by_hand():
    full = Grade(passed=3, failed=0, total=3, finished=True)
    assert (full.score("all"), full.score("fraction")) == (1.0, 1.0)
    nothing = Grade(passed=0, failed=0, total=3, finished=True)
    assert (nothing.score("all"), nothing.score("fraction")) == (0.0, 0.0)
    swallowed = Grade(passed=3, failed=0, total=3, finished=True, error="raised")
    assert (swallowed.score("all"), swallowed.score("fraction")) == (0.0, 0.75)
    loop = Grade(passed=99, failed=0, total=1, finished=False)
    assert (loop.score("all"), loop.score("fraction")) == (0.0, 0.99)


def test_failure_swallowed_by_the_tests_is_a_failure():
    tests = "try:\n    add(1, 2)\nexcept Exception:\n    pass\nassert add(1, 1) == 2"
    source = "def add(a, b):\n    if a + b == 3: raise ValueError\n    return a + b"
    assert _value(_block(source), tests) == 0.0


def test_unsupported_program_scores_nothing_or_has_no_value():
    source = _block("import heapq\ndef add(a, b): return a + b")
    assert _value(source) == 0.0
    assert _value(source, unsupported="none") is None
    wrong = _block("import no_such_module\ndef add(a, b): return a + b")
    assert _value(wrong, unsupported="none") == 0.0


def test_tests_that_the_sandbox_cannot_run_give_no_value():
    assert _value(_block(hostile_code.RIGHT), "import heapq\nassert add(1, 1) == 2") is None


def test_missing_tests_give_no_value():
    assert _value("x", None) is None
    assert _value("x", "") is None
    assert _value("x", ADD, None) is None


@pytest.mark.parametrize(
    ("tests", "functions", "message"),
    [
        ("assert f(", ["f"], "'tests': no valid Python: .*never closed"),
        ("f(1)", ["f"], r"'tests': must assert something, got 'f\(1\)'"),
        ("assert True", ["f"], "must assert something"),
        ("assert f()", ["f; import os"], "'functions': must hold names of Python, got 'f; import"),
    ],
)
def test_bad_column_is_named(tests, functions, message):
    with pytest.raises(ValueError, match=message):
        instrument(tests, functions)


def test_missing_bwrap_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="install the package bubblewrap"):
        _value("x", sandbox="bwrap")


def test_random_tests_are_the_same_every_time():
    source = _block("def add(a, b): return a")
    tests = "import random\nassert add(random.random(), 0) < 0.5"
    assert len({_value(source, tests) for _ in range(5)}) == 1


def test_reward_runs_in_the_pool():
    """Through the worker processes: right, wrong, endless, and one without tests."""
    task = Task(name="mine", train=(), heldout=())
    spec = RewardFunctionConfig(name="code_tests", options={"time_limit_s": 0.5})
    rewards = build([spec], task, RewardConfig(workers=1, deadline_s=60.0))
    try:
        assert rewards[0].isolated
        result = score(
            rewards,
            prompts=["?"] * 4,
            completions=[
                _block(hostile_code.RIGHT),
                _block("def add(a, b): return 5"),
                _block(hostile_code.PROGRAMS["endless"]),
                _block(hostile_code.RIGHT),
            ],
            completion_ids=[[1]] * 4,
            columns={
                "tests": [ADD, ADD, ADD, None],
                "functions": [["add"]] * 4,
                "stub": [""] * 4,
            },
        )
    finally:
        close(rewards)
    np.testing.assert_array_equal(result.total, [1, 0, 0, 0])
    assert result.valid.tolist() == [True, True, True, False]
