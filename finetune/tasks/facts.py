"""What preparing, loading and building found out, for people: the report, the console and W&B show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Facts:
    """values: name -> fact, such as counts, lengths, what was left out. notes: lines to show before the first step."""

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[name] = value

    def update(self, values: Mapping[str, Any]) -> None:
        self.values.update(values)

    def simple(self) -> dict[str, str | int | float | bool]:
        """The facts that fit on a line: no mappings, no lists."""
        return {name: value for name, value in self.values.items() if isinstance(value, (str, int, float, bool))}
