"""Outputs that grow by bytes: one JSON object per line, and what other formats share with it."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.inference.prediction.parts import SUFFIX, Parts, cut_back


class GrowingFile:
    """A file that bytes are appended to. A position is its size, and what was written last: how many bytes, their digest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, position: Any) -> None:
        """What is behind the position, and half of a record that a crash has left, are removed.

        Raises: UserError if it is shorter, or does not end in what was written last.
        """
        cut_back(self.path, 0 if position is None else self._check(position))

    def check_finished(self, position: Any, rows: int) -> None:
        """See Output."""
        size, found = self.size_when_empty if position is None else self._check(position), self.path.stat().st_size
        if found != size:
            raise changed_output(self.path, f"has {found:,} bytes, and had {size:,} when it was finished")

    size_when_empty = 0

    def _check(self, position: Any) -> int:
        """The size at a position. Raises: UserError if the file, up to there, does not end in what was written last."""
        try:
            size, last, digest = operator.index(position["size"]), operator.index(position["last"]), position["digest"]
            if not 0 <= last <= size:
                raise ValueError(f"{last} of {size} bytes")
        except (TypeError, KeyError, ValueError) as error:
            where = str(Parts(self.path).state)
            raise UserError(f"position is odd ({error})", where=where, remedy="Remove its folder.") from None
        with self.path.open("rb") as file:
            if (found := os.fstat(file.fileno()).st_size) < size:
                raise changed_output(self.path, f"has {found:,} bytes, fewer than the {size:,} that were written to it")
            file.seek(size - last)
            if _digest(file.read(last)) != digest:
                raise changed_output(self.path, "was changed: it does not end in what was written to it last")
        return size

    def _write(self, data: bytes) -> dict[str, Any]:
        """The position behind the data. Raises: OSError; then nothing of it stays."""
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, before)
                raise
            return {"size": before + len(data), "last": len(data), "digest": _digest(data)}

    def finish(self) -> None:
        """Nothing is left to do."""


class JsonLinesOutput(GrowingFile):
    """One JSON object per line."""

    def append(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See collector.Output."""
        lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        return self._write(lines.encode("utf-8", "backslashreplace"))


def changed_output(path: Path, what: str) -> UserError:
    """What to raise for an output that is not as it was written."""
    remedy = f"Bring it back as it was, or remove the output and its folder *{SUFFIX} to begin again."
    return UserError(what, where=str(path), remedy=remedy)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
