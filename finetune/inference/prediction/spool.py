"""Examples of a window on their way to the ranks: one file, in which each chunk is a range, and one of the bytes of their rows,
such as encoded images, each once however many examples it is part of. No pickles: a rank that reads them runs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from finetune.data.prepare.record_codec import Packer, unpack
from finetune.inference.prediction.parts import disk_errors

BYTES = "$base64"  # key of an object that stands for bytes in JSON
BLOB = "$blob"  # the same for many bytes: [offset, size, digest] in blobs.bin
SMALL = 256  # bytes up to which they are part of the JSON


@dataclass(frozen=True)
class SpooledChunk:
    """Where a chunk is in spool.bin. digest: of its examples, so that answers to others are never taken for its own."""

    offset: int
    size: int
    examples: int
    digest: str


class Spool:
    """The chunks of one window, as ranks read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / "spool.json").read_text("utf-8"))
        self.layouts: list[list[tuple[str, str]]] = [
            [(key, kind) for key, kind in layout] for layout in index["layouts"]
        ]
        self.chunks = [SpooledChunk(*chunk) for chunk in index["chunks"]]
        self._last = "", b""  # the bytes that were read last, by their digest

    def read(self, number: int) -> list[dict[str, Any]]:
        """The examples of a chunk."""
        chunk = self.chunks[number]
        with (self.folder / "spool.bin").open("rb") as file:
            file.seek(chunk.offset)
            data = np.frombuffer(file.read(chunk.size), np.uint8)
        sizes = data[: 8 * chunk.examples].view("<i8").tolist()
        examples, offset = [], 8 * chunk.examples
        for size in sizes:
            example = unpack(data[offset : offset + size], self.layouts)
            examples.append({key: self._restore(value) for key, value in example.items()})
            offset += size
        return examples

    def _restore(self, value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {BYTES}:
                return base64.b64decode(value[BYTES])
            if value.keys() == {BLOB}:
                return self._blob(*value[BLOB])
            return {key: self._restore(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._restore(item) for item in value]
        return value

    def _blob(self, offset: int, size: int, digest: str) -> bytes:
        """Read once for examples that follow each other, as the tiles of an image do."""
        if self._last[0] != digest:
            with (self.folder / "blobs.bin").open("rb") as file:
                file.seek(offset)
                self._last = digest, file.read(size)
        return self._last[1]


def write_spool(folder: Path, chunks: Sequence[Sequence[Mapping[str, Any]]]) -> list[SpooledChunk]:
    """Write the examples of a window by chunk. Raises: FinetuneError for a full disk."""
    packer, written, offset = Packer(), [], 0
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "spool.bin").open("wb") as file, (folder / "blobs.bin").open("wb") as blob_file:
            portable = _Portable(blob_file)
            for examples in chunks:
                records = [packer.pack({key: portable.value(item) for key, item in e.items()}) for e in examples]
                sizes = np.array([len(record) for record in records], "<i8").tobytes()
                data = b"".join([sizes, *records])
                file.write(data)
                # Layouts are numbered as they come, so a record means the same only together with those before it.
                named = hashlib.blake2b(data + json.dumps(packer.layouts).encode(), digest_size=12).hexdigest()
                written.append(SpooledChunk(offset, len(data), len(records), named))
                offset += len(data)
        index = {
            "layouts": packer.layouts,
            "chunks": [[chunk.offset, chunk.size, chunk.examples, chunk.digest] for chunk in written],
        }
        (folder / "spool.json").write_text(json.dumps(index), "utf-8")
    return written


class _Portable:
    """Values without anything that JSON cannot hold: bytes become text or a place in a file of their own, images PNG files."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, list[Any]] = {}
        self._pictures: dict[int, tuple[Any, bytes]] = {}  # by identity, which is safe while the image is kept

    def value(self, value: Any) -> Any:
        """A value of an example; arrays stay as they are."""
        return value if isinstance(value, np.ndarray) else self._portable(value)

    def _portable(self, value: Any) -> Any:
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._bytes(value)
        if isinstance(value, Mapping):
            return {str(key): self._portable(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return value if value and type(value[0]) is int else [self._portable(item) for item in value]
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tolist()
        if hasattr(value, "save") and hasattr(value, "getbands"):  # a PIL image
            return self._bytes(self._picture(value))
        return str(value)

    def _bytes(self, value: bytes | bytearray | memoryview) -> dict[str, Any]:
        if len(value) <= SMALL:
            return {BYTES: base64.b64encode(value).decode("ascii")}
        digest = hashlib.blake2b(value, digest_size=12).hexdigest()
        if digest not in self._places:
            self._places[digest] = [self._file.tell(), len(value), digest]
            self._file.write(value)
        return {BLOB: self._places[digest]}

    def _picture(self, image: Any) -> bytes:
        if id(image) not in self._pictures:
            file = io.BytesIO()
            image.save(file, format="PNG")
            self._pictures = {
                id(image): (image, file.getvalue())
            }  # the last one alone: tiles of an image are neighbors
        return self._pictures[id(image)][1]
