"""Examples from files: JSON lines, Parquet, Hugging Face datasets, and GSM8K.

A row is an object with a prompt field, an optional answer field and any further fields, which all
reach the rewards by their names. Files are read whole. Generated problems are not made here.
"""

import gzip
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from jgrpo.config import ColumnsConfig
from jgrpo.config_schema import suggestion
from jgrpo.data.draws import HELDOUT_ONE_IN, content_hash, is_heldout
from jgrpo.types import Example, Message

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Iterable[tuple[str, Row]]
"""Rows with the place each comes from, such as `train.jsonl:12`."""

RESERVED = ("prompts", "completions", "completion_ids")
"""Arguments of every reward function, which a field of the data must not be called."""

GSM8K_PATTERN = r"(?s).*#### ?-?[0-9][0-9,]*\.?\s*"
"""A well-formed completion of GSM8K."""
_GSM8K_INSTRUCTION = "\n\nReason step by step. End with '#### ' and the answer as a bare number."
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def examples(rows: Rows, columns: ColumnsConfig) -> tuple[Example, ...]:
    """Turns rows into examples and checks them.

    Args:
      rows: rows with their places.
      columns: which field is the prompt and which the answer.

    Returns:
      One example a row. A text field `solution` is also the worked reference completion.

    Raises:
      ValueError: naming the place, for a row without a usable prompt or answer.
    """
    return tuple(_example(place, row, columns) for place, row in rows)


def split(rows: tuple[Example, ...], path: str) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Splits off a tenth by content, so that equal prompts are always on the same side.

    The choice does not depend on the order of the rows or on other rows. A file so small that the
    hash takes none gives up its one prompt with the smallest hash.

    Raises:
      ValueError: if nothing would be left to train on.
    """
    held = {text for text in map(_text, rows) if is_heldout(text)}
    if not held and rows:
        held = {min(map(_text, rows), key=content_hash)}
    train = tuple(row for row in rows if _text(row) not in held)
    if not train:
        raise ValueError(
            f"data.path: {path!r} has too few different prompts to hold out 1 in {HELDOUT_ONE_IN}; "
            "add rows, or name a file in data.heldout_path"
        )
    return train, tuple(row for row in rows if _text(row) in held)


def read_jsonl(path: str) -> Iterator[tuple[str, Row]]:
    """Reads a `.jsonl` or `.jsonl.gz` file, or every such file of a folder by name.

    Raises:
      ValueError: naming file and line, for a line that is not a JSON object.
      FileNotFoundError: if there is no such file.
    """
    for file in _files(path, (".jsonl", ".jsonl.gz")):
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}:{number}", _object(f"{file}:{number}", line)


def read_parquet(path: str) -> Iterator[tuple[str, Row]]:
    """Reads a `.parquet` file, or every such file of a folder by name.

    Raises:
      ImportError: if pyarrow is not installed.
      FileNotFoundError: if there is no such file.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("reading Parquet needs pyarrow: pip install 'jgrpo[hf]'") from error
    for file in _files(path, (".parquet",)):
        for number, row in enumerate(parquet.read_table(file).to_pylist()):
            yield f"{file} row {number}", row


def read_dataset(path: str, split: str, subset: str) -> Iterator[tuple[str, Row]]:
    """Reads one split of a Hugging Face dataset: an id of the hub, or a local folder of files.

    Raises:
      ImportError: if datasets is not installed.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError("task 'hf' needs datasets: pip install 'jgrpo[hf]'") from error
    for number, row in enumerate(datasets.load_dataset(path, subset or None, split=split)):
        if not isinstance(row, dict):
            raise ValueError(f"{path} ({split}): rows must be objects, got {type(row).__name__}")
        yield f"{path} ({split}) row {number}", row


def gsm8k(rows: Rows) -> tuple[Example, ...]:
    """Turns rows of GSM8K (arXiv:2110.14168) into chats with a numeric answer.

    The answer is the text after the last `####`, without commas. The solution is the worked one
    without its calculator marks, whose number is the difficulty.

    Raises:
      ValueError: naming the place, for a row that is not of this form.
    """
    found = []
    for place, row in rows:
        question, worked = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(worked, str) or "####" not in worked:
            message = "must have texts 'question' and 'answer', the latter ending in '#### N'"
            raise ValueError(f"{place}: a row of GSM8K {message}, got {_cut(row)}")
        num_steps = len(_CALCULATOR.findall(worked))
        found.append(
            Example(
                prompt=[{"role": "user", "content": question + _GSM8K_INSTRUCTION}],
                answer=worked.rpartition("####")[2].strip().replace(",", ""),
                solution=_CALCULATOR.sub("", worked),
                columns={"question": question, "num_steps": num_steps, "difficulty": num_steps},
            )
        )
    return tuple(found)


def _files(path: str, endings: tuple[str, ...]) -> list[Path]:
    root = Path(path)
    if not root.is_dir():
        if not root.exists():
            raise FileNotFoundError(f"no such file: {path!r} (data.path or data.heldout_path)")
        return [root]
    found = sorted(file for file in root.iterdir() if file.name.endswith(endings))
    if not found:
        raise FileNotFoundError(f"folder {path!r} has no file that ends in {' or '.join(endings)}")
    return found


def _object(place: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a line must be a JSON object, got {_cut(line)}")
    return row


def _example(place: str, row: Row, columns: ColumnsConfig) -> Example:
    if columns.prompt not in row:
        known = f"; did you mean one of {', '.join(row)}?" if row else ""
        known = suggestion(columns.prompt, row) or known
        raise ValueError(f"{place}: no field {columns.prompt!r} (data.columns.prompt){known}")
    for name in RESERVED:
        if name in row and name != columns.prompt:
            raise ValueError(
                f"{place}: field {name!r} has the name of an argument of reward functions; "
                "rename it in the data"
            )
    solution = row.get("solution")
    return Example(
        prompt=_prompt(place, row[columns.prompt], columns.prompt),
        answer=_answer(place, row.get(columns.answer), columns.answer),
        solution=solution if isinstance(solution, str) else None,
        columns={key: value for key, value in row.items() if key != columns.prompt},
    )


def _prompt(place: str, value: Any, name: str) -> str | list[Message]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(_is_message(item) for item in value):
        return [{"role": item["role"], "content": item["content"]} for item in value]
    raise ValueError(
        f"{place}: field {name!r} must be a text that is not empty, or a list of messages with "
        f"texts 'role' and 'content', got {_cut(value)}"
    )


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(k), str) for k in ("role", "content"))


def _answer(place: str, value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    raise ValueError(f"{place}: field {name!r} must be a text or a number, got {_cut(value)}")


def _text(example: Example) -> str:
    if isinstance(example.prompt, str):
        return example.prompt
    return json.dumps([[item["role"], item["content"]] for item in example.prompt])


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
