"""Files that are either whole or absent, whenever the process or the machine stops.

Used for everything a run leaves behind. Nothing here knows what the files hold.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader sees the old file or the whole new one.

    Args:
      path: the file; its folder must exist.
      text: the new content, written as UTF-8.

    Raises:
      OSError: naming the file, if the disk is full or the folder is read-only; the old file is
        then intact.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise type(error)(error.errno, f"not written: {error.strerror}", str(path)) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: naming the file, if it is not JSON in UTF-8.
      OSError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The content of a file that holds a JSON object; empty if there is no file.

    Raises:
      ValueError: naming the file, if it is not JSON in UTF-8.
      OSError: if it cannot be read.
    """
    return read_json(path) if path.is_file() else {}


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content as 64 lowercase hex digits; the file is synced to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
