"""Data files: bombs, pipes, devices, lines and numbers without end, images that start programs, names that leave a folder."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.attack import GIB, MARK, TITLE, Attack, Place

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


def _coco(edit: Callable[[dict[str, Any]], object]) -> Callable[[Place], Sequence[str]]:
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
                data={"train": [{"source": "images/boxes.json", "format": "coco"}]},
                evaluation={},
            )
            values["model"] = {"source": str(place.folder / "absent"), "init": "pretrained"}
            values.pop("parallel")

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
    with (place.folder / "rows.jsonl").open("wb") as file:
        file.write(b'{"text": "')
        file.seek(1_500_000_000)
        file.write(b'", "label": "a"}\n')


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


GOOD = '{"text": "a b", "label": "x"}\n{"text": "c d", "label": "y"}\n' * 4


def attacks() -> Iterator[Attack]:
    yield Attack("a pipe", _rows("rows.jsonl", lambda place: os.mkfifo(place.folder / "rows.jsonl")), "pipe")
    yield Attack(
        "a link to a device",
        _rows("rows.csv", lambda place: (place.folder / "rows.csv").symlink_to("/dev/zero")),
        "device",
    )
    yield Attack("a socket", _rows("rows.csv", _socket), "pipe or a device|cannot be")
    yield Attack("a device by its name", _rows("/dev/zero", lambda place: None, format="csv"), "device")
    yield Attack("gzip bomb, JSON lines", _rows("rows.jsonl.gz", _zeros(gzip.compress, 1)), seconds=60)
    yield Attack("gzip bomb, csv", _rows("rows.csv.gz", _zeros(gzip.compress, 1)), seconds=60)
    yield Attack(
        "gzip bomb, one JSON value",
        _rows("rows.json.gz", _zeros(lambda block: gzip.compress(b"[" * len(block)), 1)),
        seconds=60,
    )
    yield Attack("xz bomb", _rows("rows.jsonl.xz", _zeros(lzma.compress, 1)), seconds=60)
    yield Attack("bzip2 bomb", _rows("rows.jsonl.bz2", _zeros(bz2.compress, 1)), seconds=60)
    yield Attack("zstd bomb", _rows("rows.jsonl.zst", _zstd), seconds=60)
    yield Attack("gzip bomb, text", _rows("rows.txt.gz", _zeros(gzip.compress, 1)), seconds=60)
    yield Attack("workbook bomb", _rows("rows.xlsx", _workbook), seconds=60)
    yield Attack("workbook of entities", _rows("rows.xlsx", _entities))
    yield Attack("a line of 1.5 GB", _rows("rows.jsonl", _long_line), "NUL|longer", seconds=60)
    yield Attack(
        "a csv field of 1.5 GB",
        _rows("rows.csv", lambda place: _sparse(place, "rows.csv", b'text,label\n"')),
        seconds=60,
    )
    yield Attack(
        "one JSON value of 1.5 GB",
        _rows("rows.json", lambda place: _sparse(place, "rows.json", b'[{"text": "')),
        seconds=60,
    )
    for value, what in (
        ("1" * 5_000, "integer of 5,000 digits"),
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000, "objects nested"),
        ("1e400", "infinite"),
        ("NaN", "NaN"),
    ):
        yield Attack(
            f"JSON lines: {what}", _rows("rows.jsonl", GOOD + f'{{"text": {value}, "label": "x"}}\n'), "rows.jsonl:9"
        )
    yield Attack(
        "JSON lines: a label of 5,000 digits",
        _rows("rows.jsonl", GOOD + '{"text": "a", "label": ' + "7" * 5_000 + "}\n"),
        "rows.jsonl:9",
    )
    yield Attack(
        "JSON: an integer of 5,000 digits", _rows("rows.json", "[" + '{"text": "a", "label": ' + "7" * 5_000 + "}]")
    )
    yield Attack("JSON: nested", _rows("rows.json", "[" * 200_000))
    yield Attack(
        "JSON lines: a lone surrogate", _rows("rows.jsonl", GOOD + '{"text": "\\ud800", "label": "x"}\n'), codes=(0, 2)
    )
    yield Attack("JSON lines: codes as columns", _rows("rows.jsonl", json.dumps({TITLE: "a", "label": "x"}) + "\n"))
    yield Attack("csv: codes as columns", _rows("rows.csv", f"{TITLE},label\na,b\n"))
    yield Attack("csv: codes as labels", _rows("rows.csv", "text,label\n" + f"a,{TITLE}\nb,c\n" * 4), codes=(0, 2))
    yield Attack("csv: a million columns", _rows("rows.csv", ",".join(f"c{i}" for i in range(200_000)) + "\n"))
    yield Attack(
        "csv: ten thousand labels",
        _rows("rows.csv", "text,label\n" + "".join(f"a,{i}\n" for i in range(10_000))),
        codes=(0, 2),
        seconds=60,
    )
    yield Attack("csv: NUL", _rows("rows.csv", b"text,label\n\0\0\0,\0\n"), codes=(0, 2))
    for metadata, what in (
        ({"huggingface": {"info": {"features": {"text": 7}}}}, "numbers"),
        ({"huggingface": b"\xff"}, "no text"),
        ({"huggingface": b"[" * 50_000}, "nested"),
        ({"huggingface": []}, "a list"),
        ({"huggingface": {"info": []}}, "info a list"),
        (
            {
                "huggingface": {
                    "info": {"features": {"text": {"_type": "Evil"}, "label": {"_type": "ClassLabel", "names": 5}}}
                }
            },
            "odd classes",
        ),
        (
            {"huggingface": {"info": {"features": {"label": {"_type": "ClassLabel", "names": [TITLE] * 2}}}}},
            "names twice",
        ),
        ({"huggingface": {"info": {"features": [1]}}}, "features a list"),
        ({"pandas": b"{" * 9}, "pandas"),
    ):
        yield Attack(f"parquet metadata: {what}", _rows("rows.parquet", _parquet(**metadata)), codes=(0, 2))
    yield Attack("parquet: not one", _rows("rows.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1"))
    yield Attack("parquet: a footer of 4 GB", _rows("rows.parquet", b"PAR1" + b"\0" * 64 + b"\xff\xff\xff\x7fPAR1"))
    yield Attack("arrow: not one", _rows("rows.arrow", b"ARROW1\0\0" + b"\xff" * 100))
    yield Attack("text: no end", _rows("rows.txt", b"\xff" * 1000))
    eps = base64.b64encode(EPS).decode()
    yield Attack("EPS called .png", _images(["a.png"], lambda place: place.write("a.png", EPS)), "EPS")
    yield Attack("EPS as it is", _images(["a.eps"], lambda place: place.write("a.eps", EPS)), "EPS")
    yield Attack("EPS as a data URI", _images([f"data:image/png;base64,{eps}"]), "EPS|not an image")
    yield Attack("EPS as bytes", _images([{"bytes": eps}]), "EPS|not an image|base64")
    for kind in ("PDF", "SVG", "XML", "WMF", "FITS", "PSD", "ICO", "HEIC"):
        head = {
            "PDF": b"%PDF-1.7",
            "SVG": b"<svg xmlns='x'>",
            "XML": b"<?xml version='1.0'?>",
            "WMF": b"\xd7\xcd\xc6\x9a\0\0",
            "FITS": b"SIMPLE  =                    T",
            "PSD": b"8BPS\0\1",
            "ICO": b"\0\0\1\0",
            "HEIC": b"\0\0\0\x18ftypheic",
        }[kind]
        yield Attack(
            f"{kind} called .png",
            _images(["a.png"], lambda place, head=head: place.write("a.png", head.ljust(200, b"\0"))),
            "not an image|in the format|cannot be opened",
        )
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (0, 0)):
        yield Attack(
            f"PNG of {width} x {height}",
            _images(["a.png"], lambda place, size=(width, height): place.write("a.png", png(*size))),
            "a.png",
        )
    yield Attack("TIFF of 10^9 pixels", _images(["a.tif"], lambda place: place.write("a.tif", _tiff())), "a.tif")
    yield Attack(
        "PNG with a text of 1 GB", _images(["a.png"], lambda place: place.write("a.png", _png_text())), codes=(0, 2)
    )
    yield Attack("image is a pipe", _images(["a.png"], lambda place: os.mkfifo(place.folder / "a.png")), "a.png")
    yield Attack("image is a device", _images(["/dev/zero"]), "zero")
    yield Attack("image is a folder", _images(["."]), "image")
    yield Attack("image is an address", _images(["http://127.0.0.1:9/x.png"]), "address|download|http")
    yield Attack("image is a file address", _images(["file:///etc/passwd"]), "address|download|file:")
    yield Attack("image is no image", _images(["/etc/passwd"]), "not an image")
    yield Attack("image name with codes", _images([TITLE + ".png"]))
    yield Attack("image name of 5,000 letters", _images(["x" * 5_000 + ".png"]))
    yield Attack("image name with NUL", _images(["a\0b.png"]))
    yield Attack("image is deep", _images([[[[[[[1]]]]]]]))
    for name in ("/etc/passwd", "../outside.png", "a/../../outside.png", "", "~/x.png", TITLE, "\0"):
        yield Attack(
            f"COCO file_name {name!r}", _coco(lambda tree, name=name: tree["images"][0].update(file_name=name))
        )
    yield Attack("COCO: a file_name that is a list", _coco(lambda tree: tree["images"][0].update(file_name=["a.png"])))
    yield Attack("COCO: boxes of 10^400", _coco(lambda tree: tree["annotations"][0].update(bbox=[0, 0, 10**400, 1])))
    yield Attack("COCO: a category of codes", _coco(lambda tree: tree["categories"][0].update(name=TITLE)))
    yield Attack("COCO: an id that is a list", _coco(lambda tree: tree["images"][0].update(id=[1])))


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


__all__ = ["GIB", "attacks", "io"]
