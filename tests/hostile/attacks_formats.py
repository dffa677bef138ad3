"""Data files of odd types and damaged containers: Arrow and Parquet, workbooks, compressed files, encodings, images."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.hostile.attack import TITLE, Attack, Place
from tests.hostile.attacks_data import GOOD, _coco, _images, _rows, png

SHEET, STYLES = "xl/worksheets/sheet1.xml", "xl/styles.xml"


def attacks() -> Iterator[Attack]:
    yield from _of_columns()
    yield from _of_workbooks()
    yield from _of_containers()
    yield from _of_texts()
    yield from _of_images()


def _table(**columns: Callable[[Any], Any]) -> Callable[[Place], Sequence[str]]:
    """A Parquet file with a text and a label, some of which are made by functions of pyarrow."""

    def write(place: Place) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        made = {"text": pa.array(["a b", "c d"] * 8), "label": pa.array(["x", "y"] * 8)}
        made |= {name: make(pa) for name, make in columns.items()}
        names = [name.rstrip("_") for name in made]
        pq.write_table(pa.Table.from_arrays(list(made.values()), names=names), place.folder / "rows.parquet")

    return _rows("rows.parquet", write)


def _deep(pa: Any) -> Any:
    column = pa.array(["x", "y"] * 8)
    for _ in range(90):
        column = pa.ListArray.from_arrays(pa.array(range(len(column) + 1), pa.int32()), column)
    return column


def _twice(pa: Any) -> Any:
    return pa.StructArray.from_arrays([pa.array(["x", "y"] * 8)] * 2, names=["a", "a"])


def _of_columns() -> Iterator[Attack]:
    lost = "row 0: a time that Python does not have in column label"
    for name, column, says in (
        ("timestamps", lambda pa: pa.array([2**62, 0] * 8, pa.timestamp("us")), lost),
        ("durations", lambda pa: pa.array([2**62, 1] * 8, pa.duration("s")), lost),
        (
            "maps",
            lambda pa: pa.array([[("a", 1)], [("b", 2)]] * 8, pa.map_(pa.string(), pa.int64())),
            "at least 2 classes",
        ),
        ("bytes", lambda pa: pa.array([b"\xff\0", b"b"] * 8), "must be a name or an integer, not bytes"),
        ("nothing", lambda pa: pa.nulls(16), "no value in column label"),
        ("lists 90 deep", _deep, "too deeply nested"),
        ("two fields of one name", _twice, "two fields of label are named 'a'"),
    ):
        yield Attack(f"parquet: labels are {name}", _table(label=column), says)
    yield Attack(
        "parquet: two columns of one name", _table(text_=lambda pa: pa.nulls(16)), "two columns are named 'text'"
    )
    odd = _table(text=lambda pa: pa.array([b"\xff\xfe", b"fine"] * 8).view(pa.string()))
    yield Attack("parquet: text that is no text", odd, "[Ii]nvalid UTF")


def _book(**parts: bytes | Callable[[bytes], bytes]) -> Callable[[Place], Sequence[str]]:
    """A workbook; sheet, styles: other content of these parts."""

    def write(place: Place) -> None:
        import openpyxl

        book, whole = openpyxl.Workbook(), io.BytesIO()
        for row in [["text", "label"], *([f"a {i}", "xy"[i % 2]] for i in range(8))]:
            book.active.append(row)
        book.save(whole)
        names = {SHEET: parts.get("sheet"), STYLES: parts.get("styles")}
        with (
            zipfile.ZipFile(whole) as old,
            zipfile.ZipFile(place.folder / "rows.xlsx", "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                content, other = old.read(name), names.get(name)
                new.writestr(name, content if other is None else other(content) if callable(other) else other)

    return _rows("rows.xlsx", write)


def _of_workbooks() -> Iterator[Attack]:
    def row(text: bytes) -> Callable[[bytes], bytes]:
        return lambda sheet: sheet.replace(b"</sheetData>", text + b"</sheetData>")

    far = b'<row r="1000000000000"><c r="A1000000000000"><v>1</v></c></row>'
    yield Attack("workbook: a cell in row 10^12", _book(sheet=row(far)), "below row 1,048,576", seconds=40)
    styles = b"<styleSheet><cellXfs>" + b"<xf/>" * 2_000_000 + b"</cellXfs></styleSheet>"
    yield Attack("workbook: two million styles", _book(styles=styles), "elements in its styles")
    entity = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    outside = _book(sheet=lambda sheet: entity + sheet.replace(b"<sheetData>", b"<sheetData>&e;", 1))
    yield Attack("workbook: an entity of another file", outside, r"rows\.xlsx")
    for name, text in (
        ("a cell called %%%", b'<row r="20"><c r="%%%"><v>1</v></c></row>'),
        ("a number without end", b'<row r="20"><c r="A20"><v>1e999999</v></c></row>'),
        ("a shared text that is not there", b'<row r="20"><c r="A20" t="s"><v>99999999</v></c></row>'),
    ):
        yield Attack(f"workbook: {name}", _book(sheet=row(text)), r"is not an \.xlsx workbook|rows\.xlsx")
    yield Attack("workbook: tags 200,000 deep", _book(sheet=b"<a>" * 200_000), r"rows\.xlsx")


def _of_containers() -> Iterator[Attack]:
    many = GOOD.encode() * 100
    for name, content, says in (
        ("rows.jsonl.gz", gzip.compress(many)[:-20], "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(many)[:-6] + b"abcdef", "CRC check failed"),
        ("rows.jsonl.gz", gzip.compress(many) + b"more", "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(gzip.compress(many)), "is compressed with gzip"),
        ("rows.jsonl.xz", lzma.compress(many)[:-20], "cannot be read"),
        ("rows.jsonl.bz2", bz2.compress(many)[:-20], "cannot be read"),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd\x00\xff" + b"\0" * 100, "too much memory"),
        ("rows.jsonl.gz", b"\x1f\x8b\x08\x08" + b"\0" * 6 + b"../../x" * 100_000, "cannot be read"),
    ):
        yield Attack(f"container {name}: {says} {len(content)}", _rows(name, content), says)


def _of_texts() -> Iterator[Attack]:
    rows = "text,label\na,x\nb,y\n"
    for encoding in ("bz2_codec", "os.path", TITLE):
        yield Attack(
            f"encoding {encoding!r}", _rows("rows.csv", rows, encoding=encoding), "not the name of an encoding"
        )
    for encoding in ("undefined", "idna", "punycode"):
        yield Attack(f"encoding {encoding!r}", _rows("rows.csv", rows, encoding=encoding), "encoding")
    for name, text, says in (
        ("two columns of one name", "text,text,label\na,b,c\n", "two columns are named"),
        ("a quote without end", rows + '"' * 100_001, "never closed|not CSV"),
    ):
        yield Attack(f"csv: {name}", _rows("rows.csv", text), says)
    key = '{"text": "a", "label": "x", "\\ud800": 1}\n'
    yield Attack("JSON lines: half of a character as a column", _rows("rows.jsonl", GOOD + key), "prepared", code=0)
    for name, row, says in (
        ("a key twice", '{"text": "a", "text": "b", "label": "x"}', "occurs twice"),
        ("a fraction of 10^6 digits", '{"text": "a", "label": 0.' + "1" * 10**6 + "}", "neither a name nor"),
        ("two values on a line", '{"text": "a", "label": "x"}{"text": "b", "label": "y"}', "more than one value"),
        ("a label 150 deep", '{"text": "a", "label": ' + '{"a": ' * 150 + "1" + "}" * 151, "not dict"),
    ):
        yield Attack(f"JSON lines: {name}", _rows("rows.jsonl", GOOD + row + "\n"), rf"rows\.jsonl:9.*{says}")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with_chunk(kind: bytes, data: bytes) -> bytes:
    good = png()
    return good[:33] + _chunk(kind, data) + good[33:]


def _of_images() -> Iterator[Attack]:
    palette = struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)
    bare = _chunk(b"IHDR", palette) + _chunk(b"IDAT", zlib.compress(b"\0" * 20)) + _chunk(b"IEND", b"")
    eps = (
        b"\xc5\xd0\xd3\xc6"
        + struct.pack("<II", 32, 60)
        + b"\0" * 22
        + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, -(2**31), -(2**31), 1, 24, *[0] * 6)
    )
    zeros = b"x\0\0" + zlib.compress(b"a" * (64 << 20), 9)
    for name, content, says in (
        ("a.png", b"\x89PNG\r\n\x1a\n" + bare, "broken image"),
        ("a.jpg", eps, "EPS"),
        ("a.jpg", gzip.compress(b"<svg/>", mtime=0), "not an image"),
        (
            "a.gif",
            b"GIF89a\xff\xff\xff\xff\x80\0\0" + b"\0" * 6 + b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;",
            "exceeds",
        ),
        ("a.png", _with_chunk(b"iCCP", zeros), "Decompressed data too large"),
        ("a.png", _with_chunk(b"iTXt", b"k\0\1\0\0\0" + zeros[3:]), "Decompressed data too large"),
        ("a.bmp", bmp, "exceeds"),
        ("a.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "not an image"),
        ("a.png", b"P3 60000 60000 255\n", "exceeds"),
    ):
        write = lambda place, name=name, content=content: place.write(name, content)  # noqa: E731
        yield Attack(f"image {name} of {content[:12]!r} {len(content)}", _images([name], write), says)
    svg = base64.b64encode(b"<svg/>").decode()
    for value, says in (
        (f"data:image/svg+xml;base64,{svg}", "SVG|not an image"),
        ("s3://bucket/x.png", "is a URL"),
        ("FILE:///etc/passwd", "is a URL"),
        ("zip://a.zip/x.png", "is a URL"),
        ("/proc/self/environ", "not an image"),
        ("/dev/tty", "not a regular file"),
        ("|cat /etc/passwd", "cannot be opened"),
        ({"path": ["a"]}, "not list"),
        ({"url": "http://x/"}, "must have bytes or path"),
    ):
        yield Attack(f"image value {str(value)[:26]!r}", _images([value]), says)
    for name in ("..\\outside.png", "a\0.png", "http://x/a.png"):
        change = lambda tree, name=name: tree["images"][0].update(file_name=name)  # noqa: E731
        yield Attack(f"COCO names {name!r}", _coco(change), "cannot be opened")
