from pathlib import Path

import pytest

from jgrpo.files import sha256, write_atomically


def test_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_atomically(path, "long old text\n")
    write_atomically(path, "new\n")
    assert path.read_bytes() == b"new\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_failed_write_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old\n")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old\n"


def test_digest_is_sha256(tmp_path: Path):
    """The digest of b"abc" is FIPS 180-2's example."""
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == expected
