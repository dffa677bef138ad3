"""Data files: bombs, pipes, devices, lines and numbers without end, images that start programs, names that leave a folder."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.contract.examples import DFINE
from tests.hostile.attack import MARK, TITLE, Attack, Place

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(" + MARK.encode() + b") (w) file closefile\nshowpage\n"


def _rows(
    name: str, content: bytes | str | Callable[[Place], object], **source: Any
) -> Callable[[Place], Sequence[str]]:
    """A text classification over one data file."""

    def make(place: Place) -> Sequence[str]:
        if callable(content):
            content(place)
        else:
            place.write(name, content)

        def change(tree: dict[str, Any]) -> None:
            tree["data"] = {"train": [{"source": name, **source}]}

        place.recipe(change)
        return ("prepare", "recipe.yaml")

    return make


def _images(
    values: Sequence[Any], write: Callable[[Place], object] = lambda place: None, extra: Sequence[Any] = ()
) -> Callable[[Place], Sequence[str]]:
    """An image classification over rows of JSON whose images are these."""

    def make(place: Place) -> Sequence[str]:
        write(place)
        place.write("good.png", png())
        rows = [{"image": value, "label": "ab"[i % 2]} for i, value in enumerate([*values, "good.png", "good.png"])]
        place.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

        def change(tree: dict[str, Any]) -> None:
            tree.update(task="image_classification", data={"train": "rows.jsonl"}, evaluation={})
            tree["model"] = {
                "source": "resnet",
                "init": "config",
                "config": {"depths": [1, 1], "hidden_sizes": [8, 8], "embedding_size": 8},
            }
            tree["options"] = {"image_size": 16}

        place.recipe(change)
        return ("prepare", "recipe.yaml")

    return make


def _coco(edit: Callable[[dict[str, Any]], object], **source: Any) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        place.write("images/a.png", png())
        place.write("outside.png", png())
        tree: dict[str, Any] = {
            "images": [{"id": 1, "file_name": "a.png", "width": 4, "height": 4}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}],
            "categories": [{"id": 1, "name": "thing"}],
        }
        edit(tree)
        place.write("images/boxes.json", json.dumps(tree))

        def change(values: dict[str, Any]) -> None:
            values.update(
                task="object_detection",
                data={"train": [{"source": "images/boxes.json", "format": "coco", **source}]},
                evaluation={},
            )
            values["model"] = {"source": "d_fine", "init": "config", "config": DFINE}
            values["options"] = {"image_size": 64}

        place.recipe(change)
        return ("prepare", "recipe.yaml")

    return make


def png(width: int = 4, height: int = 4) -> bytes:
    """A PNG; its pixels are there only if it is small."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (min(height, 64) * (1 + 3 * min(width, 64))))
    parts = [(b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _zeros(compress: Callable[[bytes], bytes], gib: int) -> bytes:
    """Many members of one compressed block of zeros: gibibytes in a file of some megabytes."""
    return compress(b"\0" * (64 << 20)) * (16 * gib)


def _workbook(place: Place) -> None:
    with zipfile.ZipFile(place.folder / "rows.xlsx", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("[Content_Types].xml", "xl/workbook.xml"):
            file.writestr(name, "<x/>")
        with file.open("xl/sharedStrings.xml", "w", force_zip64=True) as inner:
            for _ in range(40):
                inner.write(b"<t>" + b"a" * (32 << 20))


def _entities(place: Place) -> None:
    lines = ['<!ENTITY a0 "aaaaaaaaaa">'] + [f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10)]
    text = f'<?xml version="1.0"?><!DOCTYPE w [{"".join(lines)}]><workbook>&a9;</workbook>'
    with zipfile.ZipFile(place.folder / "rows.xlsx", "w") as file:
        file.writestr("[Content_Types].xml", text)
        file.writestr("xl/workbook.xml", text)


def _long_line(place: Place) -> None:
    """Eight rows that are right, then one of real text that is longer than any line may be, then one that is right."""
    with (place.folder / "rows.jsonl").open("wb") as file:
        file.write(GOOD.encode() + b'{"text": "')
        words = b"these are words of a text " * (1 << 18)
        for _ in range(64):
            file.write(words)
        file.write(b'", "label": "x"}\n{"text": "a", "label": "x"}\n')


def _long_field(place: Place) -> None:
    _sparse(place, "rows.csv", b'text,label\n"')


def _long_value(place: Place) -> None:
    _sparse(place, "rows.json", b'[{"text": "')


def _many(place: Place) -> None:
    """Words that take longer to tokenize than this waits."""
    row = "these are the words of a film that nobody has seen " * 8
    with (place.folder / "rows.csv").open("w") as file:
        file.write("text,label\n")
        for start in range(0, 600_000, 1000):
            file.write("".join(f"{i} {row},{'ab'[i % 2]}\n" for i in range(start, start + 1000)))


def _circle(place: Place) -> None:
    (place.folder / "a.png").symlink_to("b.png")
    (place.folder / "b.png").symlink_to("a.png")


def _stored(place: Place) -> None:
    place.write("blobs/0a1b2c", png())
    (place.folder / "a.png").symlink_to("blobs/0a1b2c")


def _parquet(**metadata: Any) -> Callable[[Place], object]:
    def write(place: Place) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"text": ["a", "b"] * 8, "label": ["x", "y"] * 8})
        content = {
            name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in metadata.items()
        }
        pq.write_table(table.replace_schema_metadata(content), place.folder / "rows.parquet")

    return write


SURROGATE = '{"text": "\\ud800", "label": "x"}\n'
GOOD = '{"text": "a b", "label": "x"}\n{"text": "c d", "label": "y"}\n' * 4


def attacks() -> Iterator[Attack]:
    yield from _of_files()
    yield from _of_bombs()
    yield from _of_rows()
    yield from _of_tables()
    yield from _of_images()
    yield from _of_boxes()


def _of_files() -> Iterator[Attack]:
    def link(place: Place) -> None:
        (place.folder / "rows.csv").symlink_to("/dev/zero")

    yield Attack("a pipe", _rows("rows.jsonl", lambda place: os.mkfifo(place.folder / "rows.jsonl")), "pipe")
    yield Attack("a link to a device", _rows("rows.csv", link), "device")
    yield Attack("a socket", _rows("rows.csv", _socket), "pipe or a device|cannot be")
    yield Attack("a device by its name", _rows("/dev/zero", lambda place: None, format="csv"), "device")
    yield Attack("words that are tokenized, stopped", _rows("rows.csv", _many), "stopped", 75, 12, stop_after=3.0)


def _of_bombs() -> Iterator[Attack]:
    for name, content in (
        ("rows.jsonl.gz", _zeros(gzip.compress, 1)),
        ("rows.csv.xz", _zeros(lzma.compress, 1)),
        ("rows.json.gz", _zeros(lambda block: gzip.compress(b"[" * len(block)), 1)),
        ("rows.jsonl.bz2", _zeros(bz2.compress, 1)),
        ("rows.jsonl.zst", _zstd),
        ("rows.txt.gz", _zeros(gzip.compress, 1)),
        ("rows.xlsx", _workbook),
    ):
        yield Attack(f"bomb: {name}", _rows(name, content), name.replace(".", r"\."), seconds=60)
    yield Attack("workbook of entities", _rows("rows.xlsx", _entities), "rows.xlsx")
    yield Attack(
        "a line of 0.4 GB", _rows("rows.jsonl", _long_line), r"rows\.jsonl:9.*longer than 256 MiB", seconds=150
    )
    yield Attack("a csv field without end", _rows("rows.csv", _long_field), r"rows\.csv:2", seconds=150)
    yield Attack("one JSON value of 1.5 GB", _rows("rows.json", _long_value), r"rows\.json", seconds=60)


def _of_rows() -> Iterator[Attack]:
    for value, what in (
        ("1" * 5_000, "integer of 5,000 digits"),
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000, "objects nested"),
        ("1e400", "infinite"),
        ("NaN", "NaN"),
    ):
        rows = GOOD + f'{{"text": {value}, "label": "x"}}\n'
        yield Attack(f"JSON lines: {what}", _rows("rows.jsonl", rows), "rows.jsonl:9")
    digits = GOOD + '{"text": "a", "label": ' + "7" * 5_000 + "}\n"
    yield Attack("JSON lines: a label of 5,000 digits", _rows("rows.jsonl", digits), "rows.jsonl:9")
    yield Attack("JSON: nested", _rows("rows.json", "[" * 200_000), "rows.json")
    yield Attack("JSON lines: a lone surrogate", _rows("rows.jsonl", GOOD + SURROGATE), "rows.jsonl:9")
    yield Attack(
        "JSON lines: codes as columns", _rows("rows.jsonl", json.dumps({TITLE: "a", "label": "x"}) + "\n"), "001b"
    )
    yield Attack("csv: codes as columns", _rows("rows.csv", f"{TITLE},label\na,b\n"), "001b")
    yield Attack(
        "csv: codes as labels", _rows("rows.csv", "text,label\n" + f"a,{TITLE}\nb,c\n" * 4), "prepared", code=0
    )
    header = ",".join(f"c{i}" for i in range(1_000_000)) + "\n"
    yield Attack("csv: a million columns", _rows("rows.csv", header), "1,000,000 columns")
    wide = ",".join(f"c{i}" for i in range(90_000)) + "\n"
    yield Attack("csv: 90,000 columns, none of which is asked for", _rows("rows.csv", wide), "rows.csv")
    many = "text,label\n" + "".join(f"a,{i}\n" for i in range(10_000))
    yield Attack("csv: ten thousand labels", _rows("rows.csv", many), "prepared", 0, 60)
    yield Attack("csv: NUL", _rows("rows.csv", b"text,label\n\0\0\0,\0\n"), "contains a NUL byte")


def _of_tables() -> Iterator[Attack]:
    names = {"label": {"_type": "ClassLabel", "names": [TITLE] * 2}}
    odd = {"text": {"_type": "Evil"}, "label": {"_type": "ClassLabel", "names": 5}}
    for metadata, what in (
        ({"huggingface": {"info": {"features": {"text": 7}}}}, "numbers"),
        ({"huggingface": b"\xff"}, "no text"),
        ({"huggingface": b"[" * 50_000}, "nested"),
        ({"huggingface": []}, "a list"),
        ({"huggingface": {"info": {"features": odd}}}, "odd classes"),
        ({"huggingface": {"info": {"features": [1]}}}, "features a list"),
        ({"pandas": b"{" * 9}, "pandas"),
    ):
        yield Attack(f"parquet metadata: {what}", _rows("rows.parquet", _parquet(**metadata)), "prepared", code=0)
    twice = _parquet(huggingface={"info": {"features": names}})
    yield Attack(
        "parquet metadata: one class twice", _rows("rows.parquet", twice), "does not occur in the training data"
    )
    for name, content in (
        ("rows.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1"),
        ("big.parquet", b"PAR1" + b"\0" * 64 + b"\xff\xff\xff\x7fPAR1"),
        ("rows.arrow", b"ARROW1\0\0" + b"\xff" * 100),
        ("rows.txt", b"\xff" * 1000),
    ):
        yield Attack(f"not what it is called: {name}", _rows(name, content), name)


HEADS = {
    "PDF": b"%PDF-1.7",
    "SVG": b"<svg xmlns='x'>",
    "WMF": b"\xd7\xcd\xc6\x9a\0\0",
    "FITS": b"SIMPLE  =                    T",
    "PSD": b"8BPS\0\1",
    "HEIC": b"\0\0\0\x18ftypheic",
}


def _of_images() -> Iterator[Attack]:
    eps = base64.b64encode(EPS).decode()
    yield Attack("EPS called .png", _images(["a.png"], lambda place: place.write("a.png", EPS)), "EPS")
    yield Attack("EPS as it is", _images(["a.eps"], lambda place: place.write("a.eps", EPS)), "EPS")
    yield Attack("EPS as a data URI", _images([f"data:image/png;base64,{eps}"]), "EPS|not an image")
    yield Attack("EPS as bytes", _images([{"bytes": eps}]), "EPS|not an image|base64")
    for kind, head in HEADS.items():
        write = lambda place, head=head: place.write("a.png", head.ljust(200, b"\0"))  # noqa: E731
        yield Attack(f"{kind} called .png", _images(["a.png"], write), "not an image|in the format|cannot be opened")
    for size in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 0)):
        write = lambda place, size=size: place.write("a.png", png(*size))  # noqa: E731
        yield Attack(f"PNG of {size[0]} x {size[1]}", _images(["a.png"], write), r"rows\.jsonl:1.*a\.png")
    yield Attack("TIFF of 10^9 pixels", _images(["a.tif"], lambda place: place.write("a.tif", _tiff())), "a.tif")
    text = _images(["a.png"], lambda place: place.write("a.png", _png_text()))
    yield Attack("PNG with a text of 1 GB", text, r"rows\.jsonl:1.*a\.png")
    yield Attack("image is a pipe", _images(["a.png"], lambda place: os.mkfifo(place.folder / "a.png")), "a.png")
    device = _images(["a.png"], lambda place: (place.folder / "a.png").symlink_to("/dev/zero"))
    yield Attack("image is a link to a device", device, "a.png")
    yield Attack("image is a link in a circle", _images(["a.png"], _circle), "a.png")
    passwords = _images(["a.png"], lambda place: (place.folder / "a.png").symlink_to("/etc/passwd"))
    yield Attack("image is a link to a text elsewhere", passwords, "not an image")
    stored = _images(["a.png"], _stored)  # as DVC, git-annex and the hub's cache keep files
    yield Attack("image is a link to an image elsewhere", stored, "prepared", code=0)
    for value, says in (
        ("/dev/zero", "zero"),
        (".", "image"),
        ("http://127.0.0.1:9/x.png", "address|download|http"),
        ("file:///etc/passwd", "address|download|file:"),
        ("/etc/passwd", "not an image"),
        (TITLE + ".png", "001b"),
        ("x" * 5_000 + ".png", "rows.jsonl"),
        ("a\0b.png", "rows.jsonl"),
        ([[[[[[[1]]]]]]], "rows.jsonl"),
    ):
        yield Attack(f"image is {str(value)[:20]!r}", _images([value]), says)


def _of_boxes() -> Iterator[Attack]:
    for name in ("/etc/passwd", "../outside.png", "a/../../outside.png", TITLE + "/../../x"):
        change = lambda tree, name=name: tree["images"][0].update(file_name=name)  # noqa: E731
        yield Attack(f"COCO file_name {name!r}", _coco(change), "outside of the image folder")
    for name in ("", ["a.png"]):
        change = lambda tree, name=name: tree["images"][0].update(file_name=name)  # noqa: E731
        yield Attack(f"COCO file_name {name!r}", _coco(change), r"images\[0\] has the file_name")
    leaves = _coco(lambda tree: tree["images"][0].update(file_name="../../outside.png"), images=".")
    yield Attack("COCO file_name that leaves the folder of images:", leaves, "outside of the image folder")
    allowed = _coco(lambda tree: tree["images"][0].update(file_name="outside.png"), images=".")
    yield Attack("COCO file_name in a folder that images: allows", allowed, "prepared", code=0)
    yield Attack("COCO: as it should be", _coco(lambda tree: None), "prepared", code=0)
    yield Attack(
        "COCO: boxes of 10^400",
        _coco(lambda t: t["annotations"][0].update(bbox=[0, 0, 10**400, 1])),
        "holds a value that is not a number",
    )
    yield Attack("COCO: an id that is a list", _coco(lambda t: t["images"][0].update(id=[1])), "boxes.json")


def _sparse(place: Place, name: str, head: bytes) -> None:
    with (place.folder / name).open("wb") as file:
        file.write(head)
        file.truncate(1_500_000_000)


def _socket(place: Place) -> None:
    import socket

    before = Path.cwd()
    os.chdir(place.folder)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("rows.csv")
    finally:
        os.chdir(before)


def _zstd(place: Place) -> None:
    import zstandard

    place.write("rows.jsonl.zst", zstandard.ZstdCompressor(level=3).compress(b"\0" * (64 << 20)) * 16)


def _tiff() -> bytes:
    entries = [
        (256, 4, 100_000),
        (257, 4, 100_000),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 100_000),
        (279, 4, 4),
    ]
    body = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    return body + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries) + b"\0" * 4


def _png_text() -> bytes:
    data = b"k\0\0" + zlib.compress(b"a" * (1 << 30), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    good = png()
    return good[:33] + chunk + good[33:]
