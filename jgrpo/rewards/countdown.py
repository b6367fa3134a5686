"""Decides whether an expression solves a countdown problem, with an evaluator of our own.

A recursive descent over whole numbers, `+ - * /` and brackets, in exact fractions. Text of a model
is never handed to Python. Length, nesting and the size of numbers are limited first, so that no
text makes this slow or makes it raise: whatever is not a solution is just wrong.

    sum     := product (("+" | "-") product)*
    product := factor (("*" | "/") factor)*
    factor  := number | "(" sum ")"
"""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

MAX_LENGTH = 200
MAX_DEPTH = 20
_TOKEN = re.compile(r"[0-9]{1,9}|[-+*/()]")
_BLANK = re.compile(r"[ \t\r\n]+")


class _Wrong(ValueError):
    """The text is no expression, or its value is not defined."""


def solves(expression: str, numbers: Sequence[int], target: int) -> bool:
    """Says whether an expression reaches the target with each number used at most once.

    Args:
      expression: the text of a model; `= target` may follow it. Spaces do not matter.
      numbers: the numbers given; one given twice may be used twice.
      target: what the expression must equal, exactly.

    Example:
      >>> solves("(55+36)-19-7", [19, 36, 55, 7], 65), solves("65", [19, 36, 55, 7], 65)
      (True, False)
    """
    if len(expression) > MAX_LENGTH:
        return False
    left, equals, right = _BLANK.sub("", expression).partition("=")
    if equals and right != str(target):
        return False
    tokens = _TOKEN.findall(left)
    if "".join(tokens) != left:
        return False
    used = Counter(int(token) for token in tokens if token[0] in "0123456789")
    if used - Counter(numbers):
        return False
    try:
        value, end = _sum(tokens, 0, 0)
    except (_Wrong, ZeroDivisionError):
        return False
    return end == len(tokens) and value == target


def _sum(tokens: Sequence[str], place: int, depth: int) -> tuple[Fraction, int]:
    value, place = _product(tokens, place, depth)
    while place < len(tokens) and tokens[place] in "+-":
        sign = tokens[place]
        other, place = _product(tokens, place + 1, depth)
        value = value + other if sign == "+" else value - other
    return value, place


def _product(tokens: Sequence[str], place: int, depth: int) -> tuple[Fraction, int]:
    value, place = _factor(tokens, place, depth)
    while place < len(tokens) and tokens[place] in "*/":
        sign = tokens[place]
        other, place = _factor(tokens, place + 1, depth)
        value = value * other if sign == "*" else value / other
    return value, place


def _factor(tokens: Sequence[str], place: int, depth: int) -> tuple[Fraction, int]:
    if place == len(tokens) or depth > MAX_DEPTH:
        raise _Wrong
    token = tokens[place]
    if token == "(":
        value, place = _sum(tokens, place + 1, depth + 1)
        if place == len(tokens) or tokens[place] != ")":
            raise _Wrong
        return value, place + 1
    if token[0] not in "0123456789":
        raise _Wrong
    return Fraction(int(token)), place + 1
