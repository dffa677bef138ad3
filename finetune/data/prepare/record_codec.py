"""Serializes an encoded example to bytes and back: integers in binary, arrays in NumPy's format, the rest as JSON."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Layout = list[tuple[str, str]]  # (key, kind) of each part, in order

# A record is a header (int32 index of the layout, int32 size of each part in bytes) and the parts. The header and each
# part are padded to a multiple of 8 bytes, so that all arrays are aligned.
# Kinds: "ints" int32 [n], "longs" int64 [n], "array" the bytes of np.save, "json" UTF-8.


class Packer:
    """Serializes examples. layouts: the distinct layouts so far; a record refers to its layout by index."""

    def __init__(self) -> None:
        self.layouts: list[Layout] = []
        self._index: dict[tuple[tuple[str, str], ...], int] = {}

    def pack(self, example: Mapping[str, Any]) -> bytes:
        """The record of an example. Raises: TypeError for a value that is not integers, an array or a JSON value."""
        layout, parts = [], []
        for key, value in example.items():
            kind, part = _part(value)
            layout.append((key, kind))
            parts.append(part)
        layout_key = tuple(layout)
        index = self._index.get(layout_key)
        if index is None:
            index = self._index[layout_key] = len(self.layouts)
            self.layouts.append(layout)
        header = array("i", [index, *map(len, parts)]).tobytes()
        return b"".join([_padded(header), *map(_padded, parts)])


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 8)


def _part(value: Any) -> tuple[str, bytes]:
    if isinstance(value, (list, tuple)) and value and type(value[0]) is int:
        try:
            return "ints", array("i", value).tobytes()
        except OverflowError:
            return "longs", array("q", value).tobytes()
        except TypeError:  # not all of them are integers
            return "json", _json(value)
    if hasattr(value, "dtype") and hasattr(value, "ndim"):
        return _array_part(value)
    if value == [] and isinstance(value, list):
        return "ints", b""
    return "json", _json(value)


def _array_part(value: Any) -> tuple[str, bytes]:
    import numpy as np

    value = np.asarray(value)
    if value.ndim == 0:
        return "json", _json(value.item())
    if value.ndim == 1 and value.dtype.kind in "iu":
        narrow = not value.size or (value.min() >= -(2**31) and value.max() < 2**31)
        return ("ints", value.astype("<i4").tobytes()) if narrow else ("longs", value.astype("<i8").tobytes())
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return "array", file.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def unpack(record: np.ndarray, layouts: Sequence[Layout]) -> dict[str, Any]:
    """The example of a record, uint8 [bytes]. Lists of integers are returned as writable int64 arrays [n]."""
    import numpy as np

    buffer = record.data
    layout = layouts[int.from_bytes(buffer[:4], "little", signed=True)]
    sizes = np.frombuffer(buffer, "<i4", len(layout), 4).tolist()
    offset = (4 + 4 * len(layout) + 7) & ~7
    example: dict[str, Any] = {}
    for (key, kind), size in zip(layout, sizes, strict=True):
        if kind == "ints":
            example[key] = np.frombuffer(buffer, "<i4", size // 4, offset).astype(np.int64)
        elif kind == "longs":
            example[key] = np.frombuffer(buffer, "<i8", size // 8, offset).astype(np.int64)
        elif kind == "json":
            example[key] = json.loads(bytes(buffer[offset : offset + size]).decode("utf-8", "surrogatepass"))
        else:
            example[key] = np.load(io.BytesIO(buffer[offset : offset + size]), allow_pickle=False)
        offset += (size + 7) & ~7
    return example
