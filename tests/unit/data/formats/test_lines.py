"""Tests that lines are read with correct numbers from any encoding and compression, and that a bad line costs one row,
not the file.
"""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.bad_rows import BadRow
from finetune.data.formats import compression, lines
from finetune.data.formats.lines import read_jsonl
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

SOURCE = SourceSection(source="x")


def rows_of(reader, path: Path, content: bytes, source: SourceSection = SOURCE):
    """[(line, row or reason why it is bad)]"""
    path.write_bytes(content)
    return [(line, str(row) if isinstance(row, BadRow) else row) for line, row in reader(path, source)]


def test_jsonl_names_the_line_of_every_bad_row(tmp_path):
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": }\n[1]\n{"a": "caf\xe9"}\n{"a": "\xc3\xa9"}'
    found = rows_of(read_jsonl, tmp_path / "x.jsonl", content)
    assert [line for line, _ in found] == [1, 4, 5, 6, 7]
    assert found[0][1] == {"a": 1} and found[4][1] == {"a": "é"}
    assert "not JSON: Expecting value at column 7" in found[1][1]
    assert found[2][1] == "not a JSON object, but a list"
    assert "not UTF-8 (byte 0xe9 at column 11)" in found[3][1] and "encoding: cp1252" in found[3][1]


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.mark.parametrize("form", PACKED)
def test_compressed_files_of_one_or_several_parts(tmp_path, form):
    one, two = PACKED[form](b'{"a": 1}\n{"a"'), PACKED[form](b": 2}\n")
    path = tmp_path / f"x.jsonl.{form}"
    assert rows_of(read_jsonl, path, one + two) == [(1, {"a": 1}), (2, {"a": 2})]
    with pytest.raises(UserError, match="cannot be read"):
        rows_of(read_jsonl, path, one[:-3])
    with pytest.raises(UserError, match="cannot be read"):
        rows_of(read_jsonl, path, one[:-12] + bytes(12) + two)
    with pytest.raises(UserError, match="cannot be read"):
        rows_of(read_jsonl, path, b'{"a": 1}\n')


@pytest.mark.parametrize("form", PACKED)
def test_a_compressed_file_that_is_not_named_so(tmp_path, form):
    with pytest.raises(UserError, match="is compressed with") as error:
        rows_of(read_jsonl, tmp_path / "x.jsonl", PACKED[form](b'{"a": 1}\n'))
    assert error.value.remedy == f"Rename it to end in .{form}."


def test_a_small_file_that_expands_to_a_large_one_is_read_in_bounded_memory(tmp_path):
    """A line of 1 GiB between two rows, in a file of some KiB."""
    path = tmp_path / "x.jsonl.zst"
    packer = zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as file:
        file.write(packer.compress(b'{"a": 1}\n'))
        for _ in range(64):
            file.write(packer.compress(bytes(1 << 24)))
        file.write(packer.compress(b'\n{"a": 2}\n') + packer.flush())
    script = """
        import resource, sys
        from pathlib import Path
        from finetune.data.formats.lines import read_jsonl
        from finetune.recipe.data import SourceSection
        print([(line, str(row)) for line, row in read_jsonl(Path(sys.argv[1]), SourceSection(source="x"))])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    rows, peak = done.stdout.splitlines()
    assert rows == """[(1, "{'a': 1}"), (2, 'the line is longer than 256 MiB'), (3, "{'a': 2}")]"""
    assert int(peak) < 1400, f"{peak} MiB"  # a reader that held the line would need more than twice its GiB


def test_a_long_line_is_one_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    content = b'{"a": 1}\n{"a": "' + b"x" * 3_000_000 + b'"}\n{"a": 2}\n{"a": "' + b"x" * 99
    found = rows_of(read_jsonl, tmp_path / "x.jsonl", content)
    assert [line for line, _ in found] == [1, 2, 3, 4] and found[2][1] == {"a": 2}
    assert "the line is longer than" in found[1][1] and "the line is longer than" in found[3][1]


@pytest.mark.parametrize("start", compression.SIGNATURES)
def test_files_that_are_not_text_are_named(tmp_path, start):
    with pytest.raises(UserError) as error:
        rows_of(read_jsonl, tmp_path / "x.jsonl", start + b"\0" * 40)
    assert error.value.what == compression.SIGNATURES[start][0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("given", ["utf-8", "utf-16"])
def test_byte_order_marks_are_followed(tmp_path, encoding, given):
    content = '{"a": "é\u2028ü"}\r\n{"a": "😀"}'.encode(encoding)
    source = SourceSection(source="x", encoding=given)
    if given == "utf-16" and encoding != "utf-16":
        with pytest.raises(UserError, match="byte order mark"):
            rows_of(read_jsonl, tmp_path / "x.jsonl", content, source)
    else:
        assert rows_of(read_jsonl, tmp_path / "x.jsonl", content, source) == [(1, {"a": "é\u2028ü"}), (2, {"a": "😀"})]


def test_text_of_another_encoding_is_read_if_the_source_says_so(tmp_path):
    content = '{"a": "„Gefühl“"}\n'.encode("cp1252")
    ((_, bad),) = rows_of(read_jsonl, tmp_path / "x.jsonl", content)
    assert "not UTF-8 (byte 0x84 at column 8)" in bad and "`encoding: cp1252`" in bad
    source = SourceSection(source="x", encoding="cp1252")
    found = rows_of(read_jsonl, tmp_path / "x.jsonl", content + b'{"a": "\x81"}\n{"a": "b"}', source)
    assert found[0] == (1, {"a": "„Gefühl“"}) and found[2] == (3, {"a": "b"})
    assert "not CP1252 (byte 0x81 at column 8)" in found[1][1]
    with pytest.raises(ValueError, match="not the name of an encoding"):
        SourceSection(source="x", encoding="cp12522")


def test_a_damaged_utf16_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"utf-16-le.*truncated"):
        rows_of(read_jsonl, tmp_path / "x.jsonl", '{"a": "é"}'.encode("utf-16")[:-1])


def test_nothing_in_a_row_is_lost_and_nothing_in_it_ends_the_run(tmp_path):
    deep = "[" * 50_000 + "]" * 50_000
    bad = {
        '{"a": 1, "a": 2}': "the key 'a' occurs twice in an object",
        '{"a": {"b": 1, "b": 1}}': "the key 'b' occurs twice in an object",
        '{"a": ' + "9" * 5_000 + "}": "an integer of more than 4,300 digits",
        '{"a": ' + deep + "}": "nested too deeply",
        '{"a": ' + deep[49_700:50_300] + "}": "nested too deeply",
        '{"a": 1} {"a": 2}': "more than one value on the line, from column 10",
        '{"a": "\0"}': "contains a NUL byte",
    }
    text = "\n".join(bad) + '\n{"a": "\\ud83d"}\n{"a": "b'
    found = rows_of(read_jsonl, tmp_path / "x.jsonl", text.encode())
    assert len(found) == len(bad) + 2 and found[-2] == (8, {"a": "\ud83d"})
    for (_, reason), expected in zip(found, bad.values(), strict=False):
        assert expected in reason
    assert "the line ends too early at column" in found[-1][1] and "may be incomplete" in found[-1][1]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff\r"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.dictionaries(CELL, CELL, max_size=3), st.just("broken {"), st.just("")), max_size=10))
def test_jsonl_is_read_whatever_stands_between(items):
    lines = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in items]
    with tempfile.TemporaryDirectory() as folder:
        found = rows_of(read_jsonl, Path(folder, "x.jsonl"), "\n".join(lines).encode())
    good = [(line, item) for line, item in enumerate(items, start=1) if isinstance(item, dict)]
    assert [(line, row) for line, row in found if isinstance(row, dict)] == good
    assert [line for line, row in found if isinstance(row, str)] == [
        line for line, item in enumerate(items, start=1) if item == "broken {"
    ]
