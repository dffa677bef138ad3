"""A document that was read: plain values, the line of each key, and what is wrong in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finetune.errors import Fault

KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """values: plain dicts, lists and scalars. lines: path of keys -> 1-based line. faults: what is wrong in it."""

    name: str
    values: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """The line of the key, or of the nearest section around it: "file.yaml:12"."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"


def dotted(path: KeyPath) -> str:
    """("data", "train", 0) -> "data.train.0"."""
    return ".".join(map(str, path))
