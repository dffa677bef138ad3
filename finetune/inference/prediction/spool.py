"""Examples of a window on their way to the ranks: one file, in which each chunk is a range. No pickles: a rank that reads it
runs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.prepare.record_codec import Packer, unpack
from finetune.inference.prediction.parts import disk_errors

BYTES = "$base64"  # key of an object that stands for bytes in JSON


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

    def read(self, number: int) -> list[dict[str, Any]]:
        """The examples of a chunk."""
        chunk = self.chunks[number]
        with (self.folder / "spool.bin").open("rb") as file:
            file.seek(chunk.offset)
            data = np.frombuffer(file.read(chunk.size), np.uint8)
        sizes = data[: 8 * chunk.examples].view("<i8").tolist()
        examples, offset = [], 8 * chunk.examples
        for size in sizes:
            examples.append(
                {key: _restore(value) for key, value in unpack(data[offset : offset + size], self.layouts).items()}
            )
            offset += size
        return examples


def write_spool(folder: Path, chunks: Sequence[Sequence[Mapping[str, Any]]]) -> list[SpooledChunk]:
    """Write the examples of a window by chunk. Raises: FinetuneError for a full disk."""
    packer, written, offset = Packer(), [], 0
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "spool.bin").open("wb") as file:
            for examples in chunks:
                records = [packer.pack({key: _packable(value) for key, value in e.items()}) for e in examples]
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


def _packable(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) else _portable(value)


def _portable(value: Any) -> Any:
    """The value without anything that JSON cannot hold: bytes become text, images PNG files."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {BYTES: base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        return {str(key): _portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return value if value and type(value[0]) is int else [_portable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if hasattr(value, "save") and hasattr(value, "getbands"):  # a PIL image
        file = io.BytesIO()
        value.save(file, format="PNG")
        return _portable(file.getvalue())
    return str(value)


def _restore(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {BYTES}:
            return base64.b64decode(value[BYTES])
        return {key: _restore(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore(item) for item in value]
    return value
