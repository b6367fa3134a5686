"""Examples from the rows of data files: which field is what, and what a row must be.

A row is an object with a prompt field, an optional answer field and any further fields, which all
reach the rewards by their names. Data written for TRL's `GRPOTrainer` works as it is: `completion`
and `completion_ids` are left out, as there, and every other column is handed on. Files are read in
`rows.py`; generated problems are not made here.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from jgrpo.config import ColumnsConfig
from jgrpo.config_schema import suggestion
from jgrpo.data.draws import HELDOUT_ONE_IN, content_hash, is_heldout
from jgrpo.data.rows import BadRow, Row, Rows, cut
from jgrpo.types import Example, Message

Parsed: TypeAlias = Iterator[tuple[str, Example | BadRow]]
"""Examples, or what is wrong with a row, with the place each comes from."""

RESERVED = ("prompts", "completions")
"""Arguments of every reward function, which a field of the data must not be called."""
LEFT_OUT = ("completion", "completion_ids")
"""Fields that reach no reward; TRL leaves out the same."""

_IMAGES = ("image", "images")
_TEMPLATE_FIELDS = ("tools", "chat_template_kwargs")
_MESSAGE_TOOLS = ("tool_calls", "tool_call_id", "function_call")
_MESSAGE_OTHER = ("name", "thinking", "reasoning_content", "images", "audio")
"""Keys of messages that some chat templates write into the prompt; ours passes on none of them."""

GSM8K_PATTERN = r"(?s).*#### ?-?[0-9][0-9,]*\.?\s*"
"""A well-formed completion of GSM8K."""
_GSM8K_INSTRUCTION = "\n\nReason step by step. End with '#### ' and the answer as a bare number."
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def parse(rows: Rows, columns: ColumnsConfig) -> Parsed:
    """Turns rows into examples, one by one; those that cannot be used say why.

    Args:
      rows: rows with their places.
      columns: which field is the prompt and which the answer.

    Returns:
      One example a row. A text field `solution` is also the worked reference completion. Content
      of messages in several parts of text is joined.
    """
    return each(rows, lambda row: _example(row, columns))


def parse_gsm8k(rows: Rows) -> Parsed:
    """Turns rows of GSM8K (arXiv:2110.14168) into chats with a numeric answer.

    The answer is the text after the last `####`, without commas. The solution is the worked one
    without its calculator marks, whose number is the difficulty.
    """
    return each(rows, _gsm8k_example)


def collect(parsed: Parsed) -> tuple[Example, ...]:
    """Returns the examples if all of them can be used.

    Raises:
      ValueError: naming the place of the first bad row, and how many more there are.
    """
    found: list[Example] = []
    bad: list[str] = []
    for place, item in parsed:
        if isinstance(item, BadRow):
            bad.append(f"{place}: {item.message}" if not bad else "")
        else:
            found.append(item)
    if bad:
        rows = f"{len(bad) - 1} more bad row{'s' if len(bad) > 2 else ''}"
        more = f" ({rows}; `jgrpo data check CONFIG` lists them)" if bad[1:] else ""
        raise ValueError(bad[0] + more)
    return tuple(found)


def split(rows: tuple[Example, ...], path: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Splits off a tenth by content, so that equal prompts are always on the same side.

    The choice does not depend on the order of the rows or on other rows. A file so small that the
    hash takes none gives up its one prompt with the smallest hash.

    Raises:
      ValueError: if nothing would be left to train on.
    """
    held = {text for text in map(prompt_text, rows) if is_heldout(text)}
    if not held and rows:
        held = {min(map(prompt_text, rows), key=content_hash)}
    train = tuple(row for row in rows if prompt_text(row) not in held)
    if not train:
        raise ValueError(
            f"data.path: {path!r} has too few different prompts to hold out 1 in {HELDOUT_ONE_IN}; "
            "add rows, or name a file in data.heldout_path"
        )
    return train, tuple(row for row in rows if prompt_text(row) in held)


def prompt_text(example: Example) -> str:
    """Writes a prompt as one text, the same for equal prompts."""
    if isinstance(example.prompt, str):
        return example.prompt
    return json.dumps([[item["role"], item["content"]] for item in example.prompt])


def each(rows: Rows, read: Callable[[Row], Example]) -> Parsed:
    """Reads every row; one that `read` refuses with a ValueError becomes a bad one."""
    for place, row in rows:
        if isinstance(row, BadRow):
            yield place, row
            continue
        try:
            yield place, read(row)
        except ValueError as error:
            yield place, BadRow(str(error))


def _gsm8k_example(row: Row) -> Example:
    question, worked = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(worked, str) or "####" not in worked:
        message = "must have texts 'question' and 'answer', the latter ending in '#### N'"
        raise ValueError(f"a row of GSM8K {message}, got {cut(row)}")
    num_steps = len(_CALCULATOR.findall(worked))
    return Example(
        prompt=[{"role": "user", "content": question + _GSM8K_INSTRUCTION}],
        answer=worked.rpartition("####")[2].strip().replace(",", ""),
        solution=_CALCULATOR.sub("", worked),
        columns={"question": question, "num_steps": num_steps, "difficulty": num_steps},
    )


def _example(row: Row, columns: ColumnsConfig) -> Example:
    if columns.prompt not in row:
        known = f"; did you mean one of {', '.join(row)}?" if row else ""
        known = suggestion(columns.prompt, row) or known
        raise ValueError(f"no field {columns.prompt!r} (data.columns.prompt){known}")
    for name in RESERVED:
        if name in row and name != columns.prompt:
            raise ValueError(
                f"field {name!r} has the name of an argument of reward functions; "
                "rename it in the data"
            )
    _text_only(row, columns)
    solution = row.get("solution")
    left_out = {columns.prompt, *LEFT_OUT} - {columns.answer}
    return Example(
        prompt=_prompt(row[columns.prompt], columns.prompt),
        answer=_answer(row.get(columns.answer), columns.answer),
        solution=_sound(solution, "solution") if isinstance(solution, str) else None,
        columns={key: value for key, value in row.items() if key not in left_out},
    )


def _text_only(row: Row, columns: ColumnsConfig) -> None:
    """Refuses columns that TRL makes part of the prompt and that cannot be part of it here."""
    for name in (*_IMAGES, *_TEMPLATE_FIELDS):
        if row.get(name) and name not in (columns.prompt, columns.answer):
            what = "images" if name in _IMAGES else f"{name!r} (tools and template arguments)"
            raise ValueError(
                f"field {name!r}: {what} cannot be part of a prompt here; only text is supported. "
                "Take the field out of the data if no prompt needs it"
            )


def _prompt(value: Any, name: str) -> str | list[Message]:
    if isinstance(value, str) and value:
        return _sound(value, name)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        messages = [_message(item, f"{name}[{i}]") for i, item in enumerate(value)]
        if any(message["content"] for message in messages):
            return messages
    raise ValueError(
        f"field {name!r} must be a text that is not empty, or a list of messages with "
        f"texts 'role' and 'content', got {cut(value)}"
    )


def _message(item: dict[str, Any], name: str) -> Message:
    """A message without the empty keys that Arrow fills in where other messages have a value."""
    role = item.get("role")
    if role in ("tool", "function") or any(item.get(key) for key in _MESSAGE_TOOLS):
        key = next((key for key in _MESSAGE_TOOLS if item.get(key)), f"role {role!r}")
        raise ValueError(f"field '{name}': calls of tools are not supported, got {key}")
    for key in _MESSAGE_OTHER:
        if item.get(key):
            raise ValueError(
                f"field '{name}.{key}': a message is a role and a content of text; take {key!r} "
                f"out of the data, got {cut(item[key])}"
            )
    if not isinstance(role, str) or not role:
        hint = "; is this ShareGPT's form? Rename 'from' and 'value'" if "from" in item else ""
        message = f"must be one of a list of messages with texts 'role' and 'content'{hint}"
        raise ValueError(f"field '{name}' {message}, got {cut(item)}")
    return {"role": role, "content": _content(item.get("content"), f"{name}.content")}


def _content(value: Any, name: str) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(value, str):
        return _sound(value, name)
    if not isinstance(value, list) or not value:
        message = "of a list of messages must be a text or a list of parts of text"
        raise ValueError(f"field '{name}' {message}, got {cut(value)}")
    texts = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            what = f"{kind!r}" if kind not in (None, "text") else cut(part)
            raise ValueError(
                f"field '{name}[{i}]' must be {{'type': 'text', 'text': ...}}, since images and "
                f"other media are not supported, got {what}"
            )
        texts.append(_sound(part["text"], f"{name}[{i}]"))
    return "".join(texts)


def _answer(value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _sound(value, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    raise ValueError(
        f"field {name!r} must be a text or a number, got {cut(value)}; a field of another kind "
        "reaches the rewards as it is under any other name"
    )


def _sound(text: str, name: str) -> str:
    """Returns the text if it can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        message = f"holds {half} at position {error.start}, half of a character, and is no text"
        raise ValueError(f"field {name!r} {message}; mend it in the data") from error
    return text
