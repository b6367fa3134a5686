"""Values cross the wall as plain data, and what a program may use up is bounded."""

import json
import math
import shutil
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jgrpo.rewards import bubblewrap
from jgrpo.rewards.plain import MAX_DEPTH, Clock, Limits, ProgramError, decode, encode
from jgrpo.rewards.sandbox import SANDBOXES, find_sandbox
from jgrpo.rewards.seccomp import filter_program

BWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bwrap")
SMALL = Limits(time_s=0.5, memory_bytes=64 << 20, output_chars=10_000)


@pytest.fixture(params=["monty", pytest.param("bwrap", marks=BWRAP)])
def place(request):
    if request.param == "monty":
        pytest.importorskip("pydantic_monty")
    return find_sandbox(request.param)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text(st.characters(codec="utf-8")), inner)
        | st.sets(st.integers())
        | st.frozensets(st.text(st.characters(codec="utf-8")))
    ),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_data_comes_back_as_it_was(value):
    found = decode(json.dumps(encode(value)), 10**6)
    assert found == value
    assert repr(found) == repr(value) or isinstance(value, set | frozenset | dict | list | tuple)


@given(st.text() | st.recursive(st.none() | st.text(), st.lists, max_leaves=20).map(json.dumps))
def test_any_text_is_plain_data_or_an_error_of_the_program(text):
    """Oracle: what is read can be written again, and is read as the same."""
    try:
        value = decode(text, 10**5)
    except ProgramError:
        return
    assert repr(decode(json.dumps(encode(value)), 10**6)) == repr(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "3", "NaN", "[]", '["int"]', '["int", 3]', '["int", "x"]', '["int", "1", "2"]'),
        *('["float", 1]', '["set", [["list", []]]]', '["dict", [[null]]]', '["dict", [null]]'),
        *('["object", 1]', '["list", "ab", 1]', '["bytes", [300]]', '["list", {}]', '[["int"], 1]'),
        *('["list", 3]', '"\\ud800"', "[" * 100_000, '["list", [' * 200 + "]]" * 200),
        *('["int", "' + "9" * 5000 + '"]', '["complex", "1"]', '["dict", [[["list", []], null]]]'),
    ],
)
def test_text_that_is_no_plain_data_is_refused(text):
    with pytest.raises(ProgramError, match="refused"):
        decode(text, 10**6)


def test_long_text_is_a_limit():
    with pytest.raises(ProgramError, match="limit: a value longer than 5"):
        decode('"abcd"', 5)


def test_subclasses_are_written_as_their_base():
    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    found = decode(json.dumps(encode([Liar(7)])), 100)
    assert found != [5]
    assert type(found[0]) is int


@pytest.mark.parametrize("value", [object(), print, int, iter([]), range(3), math, [object()]])
def test_other_objects_are_not_plain(value):
    with pytest.raises(TypeError, match="not plain data"):
        encode(value)


def test_depth_is_bounded():
    value: list = []
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(TypeError, match="too deeply"):
        encode(value)


def test_clock_lets_nothing_begin_after_its_limit():
    clock = Clock(Limits(time_s=0.01))
    assert clock.run(lambda: 3) == 3
    clock.run(lambda: time.sleep(0.02))
    with pytest.raises(ProgramError, match="its time is used up"):
        clock.run(lambda: 3)


def test_functions_are_called_with_plain_data(place):
    source = "def echo(*items, **named): return items, named\nlist = str = None"
    given_ = [None, True, 10**30, -0.5, math.inf, "é\u2028", b"\x00", (1, [2]), {3}, {"k": (4,)}]
    with place.program(source, Limits()) as call:
        assert call("echo", given_, {"x": [1]}) == (tuple(given_), {"x": [1]})
        assert math.isnan(call("echo", [math.nan], {})[0][0])


def test_program_keeps_its_state_between_calls(place):
    source = "n = 0\ndef count():\n    global n\n    n += 1\n    return n"
    with place.program(source, Limits()) as call:
        assert [call("count", [], {}) for _ in range(3)] == [1, 2, 3]


def test_programs_do_not_see_each_other(place):
    with (
        place.program("secret = 1", Limits()),
        place.program("def look(): return secret", Limits()) as call,
        pytest.raises(ProgramError, match="NameError"),
    ):
        call("look", [], {})


def test_program_uses_functions_out_here(place):
    seen = []

    def double(x, *, plus=0):
        seen.append(x)
        return 2 * x + plus if plus else 2 * x

    source = "def f(x): return double(x)\ndouble(f(3), plus=1)\nfor i in range(3): double((i,))"
    place.run(source, {"double": double}, Limits())
    assert seen == [3, 6, (0,), (1,), (2,)]


def test_error_of_a_function_out_here_can_be_caught_or_ends_the_program(place):
    seen = []

    def fail():
        raise RuntimeError("no")

    functions = {"fail": fail, "note": seen.append}
    place.run("try:\n    fail()\nexcept Exception:\n    note(1)", functions, Limits())
    with pytest.raises(ProgramError, match="raised"):
        place.run("note(2)\nfail()\nnote(3)", functions, Limits())
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("while True: pass", "limit"),
        ("return [0] * 10 ** 10", "limit"),
        ("return f()", "limit"),
        ("return 'x' * 20_000", "limit"),
        ("return list(range(20_000))", "limit"),
        ("return f", "raised"),
        ("return 1 / 0", "raised"),
        ("return 10 ** 5000", "raised"),
    ],
)
def test_use_is_bounded(place, body, kind):
    begun = time.monotonic()
    with (
        place.program(f"def f():\n    {body}", SMALL) as call,
        pytest.raises(ProgramError) as caught,
    ):
        call("f", [], {})
    assert caught.value.kind == kind
    assert time.monotonic() - begun < 30


def test_no_call_begins_after_the_time_of_all(place):
    with place.program("def f(endless):\n    while endless: pass\n    return 1", SMALL) as call:
        assert call("f", [False], {}) == 1
        for _ in range(2):
            with pytest.raises(ProgramError) as caught:
                call("f", [True], {})
            assert caught.value.kind == "limit"
        with pytest.raises(ProgramError, match="its time is used up"):
            call("f", [False], {})


def test_syntax_error_is_the_programs_own(place):
    for source in ("def f(:", "x = '", "\x00", "(" * 5000):
        with pytest.raises(ProgramError) as caught, place.program(source, SMALL):
            pass
        assert caught.value.kind in ("raised", "limit")


def test_monty_says_what_it_does_not_know():
    pytest.importorskip("pydantic_monty")
    for source in ("import heapq", "class A(int): pass", "from collections import OrderedDict"):
        with pytest.raises(ProgramError) as caught, SANDBOXES["monty"].program(source, SMALL):
            pass
        assert caught.value.kind == "unsupported"
    with pytest.raises(ProgramError) as caught, SANDBOXES["monty"].program("import numpy", SMALL):
        pass
    assert caught.value.kind == "raised"


def test_monty_has_one_random_stream_and_one_time():
    pytest.importorskip("pydantic_monty")
    source = "import random, time\ndef f(): return random.random(), time.time()"
    found = []
    for _ in range(2):
        with SANDBOXES["monty"].program(source, SMALL) as call:
            found.append(call("f", [], {}))
    assert found[0] == found[1]


def test_auto_is_monty():
    assert find_sandbox("auto") is SANDBOXES["monty"]


def test_bwrap_that_cannot_start_says_why(tmp_path, monkeypatch):
    """A program of that name which fails: an error of the installation, not of the model."""
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'no user namespaces' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with (
        pytest.raises(RuntimeError, match="bwrap could not start: no user namespaces"),
        bubblewrap.program("x = 1", SMALL),
    ):
        pass


def _decide(rules: bytes, architecture: int, number: int) -> int:
    """Interprets a filter as the kernel does: seccomp_data holds the number, then the machine."""
    data = {0: number, 4: architecture}
    steps = list(struct.iter_unpack("=HBBI", rules))
    place = register = 0
    while True:
        code, yes, no, value = steps[place]
        place += 1
        if code == 0x20:
            register = data[value]
        elif code == 0x06:
            return value
        else:
            assert code in (0x15, 0x35)
            place += yes if (register == value if code == 0x15 else register >= value) else no


@pytest.mark.parametrize(
    ("machine", "architecture", "refused", "allowed"),
    [
        ("x86_64", 0xC000003E, (56, 57, 58, 435, 41, 101, 246, 1 << 30), (0, 1, 9, 59, 231)),
        ("aarch64", 0xC00000B7, (220, 435, 198, 117, 104), (63, 64, 222, 221, 94)),
    ],
)
def test_filter_refuses_processes_and_sockets(machine, architecture, refused, allowed):
    rules = filter_program(machine)
    assert {_decide(rules, architecture, number) for number in refused} == {0x00050001}
    assert {_decide(rules, architecture, number) for number in allowed} == {0x7FFF0000}
    assert _decide(rules, architecture ^ 1, allowed[0]) == 0x00050001


def test_filter_of_an_unknown_machine_is_refused():
    with pytest.raises(ValueError, match="must run on one of x86_64, aarch64, got 'riscv64'"):
        filter_program("riscv64")
