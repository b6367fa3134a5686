"""What the reward functions read out of a completion: its text, its numbers, marked parts.

Numbers are compared as text in one canonical form, so that they are exact at any length and cost
nothing to a hostile completion. Only the digits 0-9 count as digits.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Completion: TypeAlias = str | Sequence[Mapping[str, str]]
"""A completion as reward functions get it: text, or messages if the prompt was a chat."""

# A minus is a sign unless it follows a number or a bracket, where it is a difference. A digit of
# another script before or after spoils the number.
_NUMBER = re.compile(
    r"(?:(?<![\w).])[-\u2212]\$?)?"
    r"(?<![\d])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?!\d)"
)


def text(completion: Completion) -> str:
    """Returns the text of a completion; that of several messages is joined."""
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion)


def canonical(number: str) -> str:
    """Writes a number in the one form that equal numbers share.

    Args:
      number: text that `find_number` or `parse_number` took for a number.

    Example:
      >>> canonical("-1,234.50"), canonical("007"), canonical("-0.0"), canonical("-$5")
      ('-1234.5', '7', '0', '-5')
    """
    negative = number[0] in "-\u2212"
    whole, _, fraction = number.lstrip("-\u2212$").replace(",", "").partition(".")
    fraction = fraction.rstrip("0")
    value = (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
    return f"-{value}" if negative and value != "0" else value


def last_number(words: str) -> str | None:
    """Returns the last number of a text in canonical form, or None.

    Example:
      >>> last_number("7 + 5 = 12."), last_number("x = -3"), last_number("12-5"), last_number("no")
      ('12', '-3', '5', None)
    """
    found = None
    for match in _NUMBER.finditer(words):
        found = match
    return canonical(found.group()) if found else None


def first_number(words: str) -> str | None:
    """Returns the first number of a text in canonical form, or None."""
    match = _NUMBER.search(words)
    return canonical(match.group()) if match else None


def leading_number(words: str) -> tuple[str, str] | None:
    """Returns the number that a text begins with, in canonical form, and what follows it.

    Spaces and a dollar sign may come before the number.

    Example:
      >>> leading_number(" $1,200. Done"), leading_number("about 3")
      (('1200', '. Done'), None)
    """
    words = words.lstrip()
    words = words.removeprefix("$")
    match = _NUMBER.match(words)
    return (canonical(match.group()), words[match.end() :]) if match else None


def parse_number(words: str) -> str | None:
    """Returns a text that is one number, in canonical form, or None if it is anything else."""
    match = leading_number(words)
    return match[0] if match and not match[1].strip(" \t\r\n.") else None
