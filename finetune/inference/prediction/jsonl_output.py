"""Outputs that grow by bytes: one JSON object per line, and what other formats share with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.inference.prediction.parts import cut_back


class GrowingFile:
    """A file that bytes are appended to. A position is its size."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, position: Any) -> None:
        """What is behind the position, and half of a record that a crash has left, are removed. Raises: UserError."""
        cut_back(self.path, position or 0)

    def _write(self, data: bytes) -> int:
        """The size behind the data. Raises: OSError; then nothing of it stays."""
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
            return before + len(data)

    def finish(self) -> None:
        """Nothing is left to do."""


class JsonLinesOutput(GrowingFile):
    """One JSON object per line."""

    def append(self, records: Sequence[Mapping[str, Any]]) -> int:
        """See collector.Output."""
        lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        return self._write(lines.encode("utf-8", "backslashreplace"))
