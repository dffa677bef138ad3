"""An output that is one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class JsonLinesOutput:
    """See collector.Output. A position is a number of bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, position: Any) -> None:
        """Lines behind the position, and half of one that a crash has left, are removed."""
        with self.path.open("ab"):
            os.truncate(self.path, position or 0)

    def append(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Raises: OSError for a full disk; what of the records was written is removed by the next start."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with self.path.open("ab") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def finish(self) -> None:
        """Nothing is left to do."""
