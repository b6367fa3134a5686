"""Built-in rewards on numbers as people and hostile models write them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jgrpo.rewards import functions
from jgrpo.rewards.countdown import solves
from jgrpo.rewards.text import canonical, last_number, parse_number

HUGE = "9" * 6000
ARABIC_4 = "\u0664"
FULLWIDTH_54 = "\uff15\uff14"


def _one(function, completion, **arguments):
    options = {key: value for key, value in arguments.items() if key in OPTIONS}
    columns = {key: [value] for key, value in arguments.items() if key not in OPTIONS}
    return function(completions=[completion], **columns, **options)[0]


OPTIONS = {"case", "where", "marker", "trailing", "pattern", "max_tokens", "when", "within"}


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("61+72=133;133-79=54;#54", "54", 1.0),
        ("#54", "55", 0.0),
        ("54", "54", 0.0),
        ("#5#54", "54", 1.0),
        ("#54#5", "54", 0.0),
        ("# 54. ", "54", 1.0),
        ("#054", "54", 1.0),
        ("#54.0", "54", 1.0),
        ("#1,234", "1234", 1.0),
        ("#1,23", "123", 0.0),
        ("#-7", "-7", 1.0),
        ("#\u22127", "-7", 1.0),
        ("#$-7", "-7", 1.0),
        ("#--7", "-7", 0.0),
        ("#-0", "0", 1.0),
        ("#54+1", "54", 0.0),
        ("#54 apples", "54", 0.0),
        ("#54#", "54", 0.0),
        ("#", "54", 0.0),
        ("", "54", 0.0),
        ("#nan", "54", 0.0),
        ("#54", "nan", None),
        ("#54", "", None),
        (f"#5{ARABIC_4}", "5", 0.0),
        (f"#{FULLWIDTH_54}", "54", 0.0),
        (f"#{HUGE}", HUGE, 1.0),
        (f"#{HUGE}0", HUGE, 0.0),
        ("#5e1", "50", 0.0),
        ([{"role": "assistant", "content": "#54"}], "54", 1.0),
    ],
)
def test_tagged_number(completion, answer, value):
    assert _one(functions.tagged_number, completion, answer=answer) == value


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("So\n#### 1,234", 1.0),
        ("#### $1,234 dollars.", 1.0),
        ("#### 1234.00\n\nThanks", 1.0),
        ("##### 1234", 1.0),
        ("### 1234", 0.0),
        ("#### about 1234", 0.0),
        ("#### 12345", 0.0),
    ],
)
def test_tagged_number_of_gsm8k(completion, value):
    options = {"marker": "####", "trailing": "ignore"}
    assert _one(functions.tagged_number, completion, answer="1234", **options) == value


@pytest.mark.parametrize(
    ("completion", "answer", "where", "value"),
    [
        ("7 + 5 = 12.", "12", "last", 1.0),
        ("12", "12", "last", 1.0),
        ("The answer is 12, as 7+5=12!", "12", "last", 1.0),
        ("12 or 13", "12", "last", 0.0),
        (" 6\ngcd(3, 4) = 1", "6", "first", 1.0),
        ("17-5", "5", "last", 1.0),
        ("x = -5", "-5", "last", 1.0),
        ("x = -5", "5", "last", 0.0),
        ("(-5)", "-5", "last", 1.0),
        ("f(2)-5", "5", "last", 1.0),
        ("$1,200.50", "1200.5", "last", 1.0),
        ("1,2,3", "3", "last", 1.0),
        ("it costs -$3", "-3", "last", 1.0),
        ("nothing", "12", "last", 0.0),
        (f"1{ARABIC_4}", "1", "last", 0.0),
        (f"{ARABIC_4}1", "1", "last", 0.0),
        ("12", "twelve", "last", None),
    ],
)
def test_number_match(completion, answer, where, value):
    assert _one(functions.number_match, completion, answer=answer, where=where) == value


@given(st.integers(-(10**30), 10**30), st.integers(0, 3))
def test_every_writing_of_a_number_is_the_same_number(number, zeros):
    plain = str(number)
    padded = ("-" if number < 0 else "") + "0" * zeros + str(abs(number))
    assert {
        canonical(text) for text in (plain, padded, f"{number:,}", f"{plain}.{'0' * zeros}")
    } == {plain}
    assert parse_number(f" {number:,}. ") == plain
    assert last_number(f"so 3+4 = {number:,}.") == plain


@given(st.text())
def test_no_text_breaks_a_number_reward(text):
    for function in (functions.number_match, functions.tagged_number):
        assert _one(function, text, answer="54") in (0.0, 1.0)
        assert _one(function, "#54", answer=text) in (0.0, 1.0, None)


def test_exact_match():
    assert _one(functions.exact_match, " Paris\n", answer="Paris") == 1.0
    assert _one(functions.exact_match, "paris", answer="Paris") == 0.0
    assert _one(functions.exact_match, "paris", answer="Paris", case="ignore") == 1.0
    assert _one(functions.exact_match, "x", answer=" ") is None


def test_regex_format_must_match_the_whole():
    assert _one(functions.regex_format, "#54\n", pattern=r"#[0-9]+") == 1.0
    assert _one(functions.regex_format, "so #54", pattern=r"#[0-9]+") == 0.0


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>a\nb</think>\n<answer>5</answer>", 1.0),
        ("<think></think><answer></answer> ", 1.0),
        ("<think>a</think>so<answer>5</answer>", 0.0),
        ("<think>a</think><answer>5", 0.0),
        ("<think><think>a</think><answer>5</answer>", 0.0),
        ("<answer>5</answer><think>a</think>", 0.0),
    ],
)
def test_tag_format(completion, value):
    assert _one(functions.tag_format, completion) == value


@pytest.mark.parametrize(
    ("prompt", "completion", "value"),
    [
        ("61+72-79", "61+72=133;133-79=54;#54", 1.0),
        (" 61 + 72\n", "133", 1.0),
        ("61+72", "133-1", 0.0),
        ("2-5", "#-3", 1.0),
        ("2-5", "#3", 0.0),
        ("61+72", "", 0.0),
        ([{"role": "user", "content": "1+1"}], [{"role": "assistant", "content": "2"}], 1.0),
        ("61", "61", None),
        ("61+", "61", None),
        ("-1+2", "1", None),
        ("6*7", "42", None),
        (f"1+{HUGE}", HUGE, None),
        ("", "0", None),
    ],
)
def test_sum_match(prompt, completion, value):
    assert _one(functions.sum_match, completion, prompts=prompt) == value


def test_length_is_a_linear_bonus_for_correct_completions():
    """Of at most 8 tokens: 2 tokens give 6/8, 8 and more give 0; a wrong answer gives 0."""
    arguments = {
        "completions": ["#5", "#5", "#5", "#6", "#6"],
        "completion_ids": [[1] * 2, [1] * 8, [1] * 99, [1] * 2, [1] * 2],
        "answer": ["5", "5", "5", "5", "none"],
        "max_tokens": 8,
    }
    assert functions.length(**arguments, when="tagged_number") == [0.75, 0.0, 0.0, 0.0, None]
    assert functions.length(**arguments) == [0.75, 0.0, 0.0, 0.75, 0.75]


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("(55+36)-19-7", True),
        (" ( 55 + 36 ) - 19 - 7 = 65 ", True),
        ("55+36-19-7=66", False),
        ("65", False),
        ("55+36-19-7-7+7", False),
        ("55*36/36+19-7-2", False),
        ("55+(36-19-7", False),
        ("55+36-19-7)", False),
        ("55+36-(19+7)", True),
        ("36*55-19*7", False),
        ("(36-19-7)*7-55/(55-55)", False),
        ("36/(7-7)", False),
        ("-19-7+36+55", False),
        ("55+36-19-7;import os", False),
        ("5536", False),
        ("55**36", False),
        ("__import__('os').system('true')", False),
        ("", False),
        ("=65", False),
        ("()", False),
        (f"\uff15\uff15+{ARABIC_4}", False),
        ("(" * 100 + "55" + ")" * 100, False),
        ("(" * 50 + "55+36-19-7" + ")" * 50, False),
        ("1" * 100_000, False),
        ("9" * 150, False),
        ("55+36-19-7\x00", False),
    ],
)
def test_countdown_expression(expression, right):
    assert solves(expression, [19, 36, 55, 7], 65) is right


def test_countdown_is_exact_in_fractions():
    """8/(3-8/3) = 24 passes through thirds."""
    assert solves("8/(3-8/3)", [3, 3, 8, 8], 24)
    assert not solves("8/(3-8/3)", [3, 8, 8, 9], 24)


@given(st.text(alphabet="0123456789+-*/()= ", max_size=60))
def test_countdown_agrees_with_python_where_python_can_say(expression):
    """Oracle: `eval` on texts of these signs only, with fractions, in the test alone."""
    numbers, target = [1, 2, 3, 4, 5, 6, 7, 8, 9], 6
    found = solves(expression, numbers, target)
    if found:
        left = expression.partition("=")[0]
        assert "**" not in left
        assert "//" not in left
        stripped = re.sub(r"\b0+(?=\d)", "", left.replace(" ", ""))  # 06 is 6, not so in Python
        assert abs(eval(stripped) - target) < 1e-9


def test_countdown_reads_the_last_expression():
    arguments = {"numbers": [1, 2, 3], "target": 6}
    assert _one(functions.countdown, "1+2=3;3+3=6;#1+2+3", **arguments) == 1.0
    assert _one(functions.countdown, "1+2+3", **arguments) == 0.0
    tags = {**arguments, "within": "answer_tags"}
    assert _one(functions.countdown, "<answer>1</answer> <answer>1+2+3</answer>", **tags) == 1.0
    assert _one(functions.countdown, "<answer>1+2+3", **tags) == 0.0
    assert _one(functions.countdown, "1+2+3</answer>", **tags) == 0.0
