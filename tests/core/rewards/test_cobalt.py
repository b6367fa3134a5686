"""The reward of the next program of a dialogue: worked values, form, the sandbox."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jgrpo.rewards.cobalt import cobalt, improvement, repeats

FRACTIONS = st.integers(0, 20).map(lambda n: n / 20)
ADD = "assert add(2, 3) == 5\nassert add(1, 1) == 2\nassert add(0, 0) == 0\nassert add(4, 4) == 8"
RIGHT = "def add(a, b):\n    return a + b"
HALF = "def add(a, b):\n    return 2 * b"  # right for equal numbers: 3 of 4


@pytest.mark.parametrize(
    ("passed", "before", "worth"),
    [(1, 0, 1), (0.6, 0.4, 0.2333), (0.6, 0.8, -0.125), (0, 0.5, -0.2), (0.5, 0.5, -0.1)],
)
def test_worked_values_of_the_improvement(passed, before, worth):
    assert improvement(passed, before) == pytest.approx(worth, abs=5e-5)


@given(FRACTIONS, FRACTIONS, FRACTIONS)
def test_more_passed_tests_are_never_worth_less(one, other, before):
    low, high = sorted((improvement(one, before), improvement(other, before)))
    assert -0.2 <= low <= high <= 1.0
    if one <= other:
        assert improvement(one, before) <= improvement(other, before)


def block(code):
    return f"Here it is:\n```python\n{code}\n```\nDone."


def value(completion, before=0.0, tokens=3, tests=ADD, **options):
    (found,) = cobalt(
        completions=[completion],
        completion_ids=[[1] * tokens],
        tests=[tests],
        functions=[["add"]],
        stub=[""],
        prev_best=[before],
        **options,
    )
    return found


def test_programs_are_worth_what_they_pass_and_gain():
    pytest.importorskip("pydantic_monty")
    assert value(block(RIGHT)) == 1.0
    assert value(block(HALF)) == pytest.approx(0.2)
    assert value(block(HALF), before=0.5) == pytest.approx(0.2 + 0.1 * 0.25 / 0.5)
    assert value(block(HALF), before=1.0) == pytest.approx(-0.1 - 0.1 * 0.25)
    assert value(block("def add(a, b):\n    return None")) == pytest.approx(-0.1)
    assert value(block(RIGHT), tests=None) is None


def test_the_form_decides_too():
    pytest.importorskip("pydantic_monty")
    assert value(RIGHT) == -1.0  # no block
    assert value(block(RIGHT) + block(RIGHT)) == pytest.approx(0.1)
    assert value("x" * 300 + block(RIGHT)) == pytest.approx(0.1)
    assert value(block(RIGHT), tokens=10, max_tokens=9) == pytest.approx(0.99)
    assert value(block(RIGHT), think_end="</think>") == pytest.approx(0.1)
    assert value(f"so</think>{block(RIGHT)}", think_end="</think>") == 1.0
    assert value(block("") + block(""), before=0.5) == -1.0  # never below -1


def test_repetition_is_eight_times_32_signs_or_more_in_a_row():
    one = "".join(chr(97 + i % 26) + str(i % 10) for i in range(20))  # 40 signs
    assert repeats("say: " + one * 8)
    assert not repeats("say: " + one * 7 + one[:30])
    assert not repeats("")
    assert repeats("a" * 256)
    assert not repeats("a" * 255)


def test_a_long_hostile_text_is_read_in_time():
    """Nearly periodic in every way; 20,000 signs are looked at, whatever comes behind."""
    assert not repeats(("a" * 200 + "b") * 7 + "".join(map(str, range(9000))) * 50)
