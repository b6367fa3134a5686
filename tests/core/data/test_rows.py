"""Reading rows: what a line may be, and that a damaged file is named where it is damaged."""

import gzip
import json

import pytest

from jgrpo.data import rows
from jgrpo.data.rows import BadRow, read_jsonl, read_parquet


def _read(path, content: bytes):
    path.write_bytes(content)
    return list(read_jsonl(str(path)))


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a"}\n{"prompt": "b"}',
        b'{"prompt": "a"}\r\n{"prompt": "b"}\r\n',
        b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b"}\n',
        b'  {"prompt": "a"} \t\n{"prompt": "b"}\n',
    ],
)
def test_line_ends_blanks_and_byte_order_marks_do_not_matter(tmp_path, content):
    path = tmp_path / "d.jsonl"
    assert _read(path, content) == [
        (f"{path}:1", {"prompt": "a"}),
        (f"{path}:2", {"prompt": "b"}),
    ]


def test_blank_lines_count_but_are_no_rows(tmp_path):
    path = tmp_path / "d.jsonl"
    found = _read(path, b'\n{"prompt": "a"}\n   \r\n\n{"prompt": "b"}\n')
    assert [place for place, _ in found] == [f"{path}:2", f"{path}:5"]


def test_separators_of_unicode_do_not_end_a_line(tmp_path):
    text = "a\u2028b\u0085c\x0cd"
    content = json.dumps({"prompt": text}, ensure_ascii=False).encode() + b"\n"
    assert [row for _, row in _read(tmp_path / "d.jsonl", content)] == [{"prompt": text}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "\xe9"}', "not UTF-8: byte 0xe9 at position 12"),
        ("{}".encode("utf-16"), "the file is UTF-16"),
        (b'{"prompt": NaN}', "NaN is not JSON; use null"),
        (b'{"prompt": -Infinity}', "-Infinity is not JSON"),
        (b'{"prompt": 1e999}', "1e999 is too large"),
        (b'{"prompt": 1, "prompt": 2}', "field 'prompt' is given twice"),
        (b'{"a": [{"b": 1, "b": 2}]}', "field 'b' is given twice"),
        (b'{"prompt": "a"', "not valid JSON"),
        (b'{"prompt": "a"} {"prompt": "b"}', "not valid JSON: Extra data"),
        (b"[", "is the file one JSON array"),
        (b"3", "must be a JSON object, got 3"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_bad_line_says_why_and_the_next_is_read(tmp_path, line, message):
    path = tmp_path / "d.jsonl"
    (place, bad), (_, good) = _read(path, line + b'\n{"prompt": "fine"}\n')[:1] + _read(
        path, b'{"prompt": "fine"}\n'
    )
    assert place == f"{path}:1"
    assert isinstance(bad, BadRow)
    assert message in bad.message
    assert good == {"prompt": "fine"}


def test_a_line_that_would_fill_the_memory_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_MAX_LINE_BYTES", 2**20)
    long = json.dumps({"prompt": "x" * 3 * 2**20}).encode()
    found = _read(tmp_path / "d.jsonl", b'{"a": 1}\n' + long + b'\n{"a": 3}\n')
    assert [row for _, row in found[::2]] == [{"a": 1}, {"a": 3}]
    assert "longer than 1 MiB" in found[1][1].message
    assert found[2][0].endswith(":3")


@pytest.mark.parametrize("damage", ["cut off", "not gzip"])
def test_a_damaged_gzip_file_is_a_bad_row(tmp_path, damage):
    path = tmp_path / "d.jsonl.gz"
    # Too varied to be squeezed into the part that is left.
    lines = [json.dumps({"prompt": str(hash(str(i)))}) for i in range(5000)]
    whole = gzip.compress("\n".join(lines).encode())
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut off" else b"plain text")
    found = list(read_jsonl(str(path)))
    assert isinstance(found[-1][1], BadRow)
    assert "gzip file is damaged" in found[-1][1].message
    assert found[-1][0] == f"{path}:{len(found)}"
    assert all(not isinstance(row, BadRow) for _, row in found[:-1])


def test_a_file_that_is_not_parquet_is_a_bad_row(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "d.parquet"
    path.write_bytes(b"not parquet at all")
    ((place, bad),) = read_parquet(str(path))
    assert place == f"{path} row 0"
    assert bad.message.startswith("not readable as Parquet: ")
