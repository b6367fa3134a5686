"""Rows of data files: JSON lines, Parquet and Hugging Face datasets, each with its place.

A reader yields every row there is. One that cannot be read is a `BadRow` that says why, so that a
check reports all of them, while a run stops at the first. What the fields of a row mean is decided
in `sources.py`.
"""

import dataclasses
import gzip
import importlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

Row: TypeAlias = Mapping[str, Any]

_MAX_LINE_BYTES = 64 * 2**20
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_MEDIA = ("Image", "Audio", "Video", "Pdf")
"""Features of `datasets` that are not text and whose decoding needs further packages."""


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
      message: what is wrong, what is allowed, what to do.
    """

    message: str


Rows: TypeAlias = Iterable[tuple[str, Row | BadRow]]
"""Rows with the place each comes from, such as `train.jsonl:12`."""


def read_jsonl(path: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Reads a `.jsonl` or `.jsonl.gz` file, or every such file of a folder by name.

    Lines are UTF-8 and end in LF or CRLF; blank lines and a byte-order mark are passed over. The
    JSON is strict: no NaN or infinity, and no field twice.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    for file in _files(path, (".jsonl", ".jsonl.gz")):
        opened = gzip.open if file.suffix == ".gz" else open
        number = 0
        with opened(file, "rb") as lines:
            try:
                for number, line in enumerate(_lines(lines), start=1):
                    if isinstance(line, BadRow) or line.strip():
                        yield f"{file}:{number}", _row(line)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                message = f"the gzip file is damaged from here on: {error}"
                yield f"{file}:{number + 1}", BadRow(message)


def read_parquet(path: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Reads a `.parquet` file, or every such file of a folder by name; rows count from 0.

    Raises:
      ImportError: if pyarrow is not installed.
      FileNotFoundError: if there is no such file.
    """
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("reading Parquet needs pyarrow: pip install 'jgrpo[hf]'") from error
    for file in _files(path, (".parquet",)):
        number = 0
        try:
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches():
                    for row in batch.to_pylist():
                        yield f"{file} row {number}", row
                        number += 1
        except (arrow.ArrowException, UnicodeDecodeError, OSError) as error:
            yield f"{file} row {number}", BadRow(f"not readable as Parquet: {_first_line(error)}")


def read_dataset(path: str, split: str, subset: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Reads one split of a Hugging Face dataset; rows count from 0.

    Args:
      path: an id of the hub, a local folder of data files, or what `save_to_disk` wrote. A single
        split that was saved has no name: `train` stands for it.
      split: name of the split.
      subset: configuration of the dataset; empty: its default.

    Raises:
      ImportError: if datasets is not installed.
      ValueError: for a split that does not exist, a file, or columns of images, audio or video.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError("task 'hf' needs datasets: pip install 'jgrpo[hf]'") from error
    folder = Path(path)
    if folder.is_file():
        raise ValueError(
            f"data.path: {path!r} is a file; read it with data.task=jsonl or data.task=parquet"
        )
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        dataset = _saved(datasets, path, split, subset)
    else:
        dataset = datasets.load_dataset(path, subset or None, split=split)
    for name, feature in dataset.features.items():
        media = [kind.lower() for kind in _MEDIA if f"{kind}(" in repr(feature)]
        if media:
            raise ValueError(
                f"{path} ({split}): column {name!r} holds {media[0]} data, and only text is "
                "supported; remove the column from the data"
            )
    for number, row in enumerate(dataset):
        yield f"{path} ({split}) row {number}", row


def _saved(datasets: Any, path: str, split: str, subset: str) -> Any:
    """A split of what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    if subset:
        message = f"a dataset that was saved to disk has no subsets, got {subset!r}; leave it out"
        raise ValueError(f"data.options.subset: {message}")
    found = datasets.load_from_disk(path)
    splits = found if isinstance(found, dict) else {"train": found}
    if split not in splits:
        key = "split" if split == "train" else "split or data.options.heldout_split"
        message = f"must be one of {', '.join(splits)} for {path!r}, got {split!r}"
        raise ValueError(f"data.options.{key}: {message}")
    return splits[split]


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


def _lines(file: BufferedIOBase) -> Iterator[bytes | BadRow]:
    """The lines of a file, none of which fills the memory."""
    while line := file.readline(_MAX_LINE_BYTES + 1):
        if len(line) <= _MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES)
        limit = _MAX_LINE_BYTES >> 20
        yield BadRow(f"the line is longer than {limit} MiB; write one JSON object a line")


def _row(line: bytes | BadRow) -> Row | BadRow:
    """The JSON object of a line."""
    if isinstance(line, BadRow):
        return line
    if line.startswith(_UTF_16):
        return BadRow("the file is UTF-16; save it as UTF-8")
    try:
        text = line.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start : error.start + 1].hex()
        return BadRow(f"not UTF-8: byte 0x{byte} at position {error.start}; save the file as UTF-8")
    try:
        row = json.loads(
            text, object_pairs_hook=_once, parse_constant=_refuse_constant, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        hint = "; is the file one JSON array? Write one object a line" if text[0] == "[" else ""
        return BadRow(f"not valid JSON: {error}{hint}")
    except RecursionError:
        return BadRow("not valid JSON: nested too deeply")
    except ValueError as error:
        return BadRow(f"not valid JSON: {error}")
    if not isinstance(row, dict):
        return BadRow(f"a line must be a JSON object, got {cut(row)}")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is given twice in one object; keep one of them")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON; use null for a missing value")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is too large for a float; put it in quotes")
    return number


def cut(value: Any) -> str:
    """Writes a value as an error shows it, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
