"""How far an output is. No torch here: the process that starts the ranks reads it."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.inference.prediction.parts import publish_sealed, read_sealed


def _checked(value: dict[str, Any]) -> dict[str, Any]:
    """Raises: ValueError or TypeError for a value of another kind than those that are written."""
    for name in ("windows", "rows", "scored_bytes", "scored"):
        if not 0 <= operator.index(value.get(name, 0)) < 1 << 62:
            raise ValueError(f"{name} is {value[name]}")
    if not isinstance(value.get("finished", False), bool):
        raise ValueError(f"finished is {value['finished']!r}")
    for name in ("errors", "first_errors", "nothing", "first_nothing"):
        if not all(isinstance(count, int) and count >= 0 for count in dict(value.get(name, {})).values()):
            raise ValueError(f"{name} holds no numbers")
    if not all(isinstance(reason, str) for reason in dict(value.get("first_reasons", {})).values()):
        raise ValueError("first_reasons holds no texts")
    if not math.isfinite(value.get("seconds", 0.0)):
        raise ValueError(f"seconds is {value['seconds']}")
    return dict(value)


@dataclass
class State:
    """How far the output is. position: see Output. scored_bytes: of scored.jsonl. errors: kind -> rows.
    first_errors: kind -> the first such row. first_reasons: kind -> its message, at most 300 characters.

    nothing, first_nothing: field -> rows in whose answer it is empty, and the first of them.

    seconds: over all starts, while ranks were there. finished: nothing is left to do.
    """

    windows: int = 0
    rows: int = 0
    position: Any = None
    scored_bytes: int = 0
    scored: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    first_errors: dict[str, int] = field(default_factory=dict)
    first_reasons: dict[str, str] = field(default_factory=dict)
    nothing: dict[str, int] = field(default_factory=dict)
    first_nothing: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    finished: bool = False

    @classmethod
    def read(cls, path: Path) -> State:
        """The state of an earlier start, or of none."""
        try:
            return cls(**_checked(read_sealed(path)))
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError) as error:
            raise UserError(f"cannot be read: {error}", where=str(path), remedy="Remove its folder.") from None

    def save(self, path: Path) -> None:
        publish_sealed(path, asdict(self))

    @property
    def failed(self) -> int:
        """Rows without an answer."""
        return sum(self.errors.values())

    @property
    def failed_kinds(self) -> str:
        """Their kinds, with the number of rows and the first one: "5 bad_row (first: row 2), 1 empty (row 7)"."""
        return ", ".join(self._kind(kind, count) for kind, count in self.errors.items())

    def describe_nothing(self, threshold: float) -> list[str]:
        """Lines for people about answers that hold nothing. threshold: the lowest score of what is in an answer."""
        nouns = {"boxes": "box", "labels": "label"}
        lines = []
        for name, count in self.nothing.items():
            place = f"({'row' if count == 1 else 'first: row'} {self.first_nothing.get(name, 0):,})"
            rows, have = ("1 row", "has") if count == 1 else (f"{count:,} rows", "have")
            if name in nouns:
                lines.append(
                    f"{rows} {have} no {nouns[name]} with a score of {threshold:g} or more {place}; --threshold sets it"
                )
            else:
                lines.append(f"{rows} {have} an empty text as answer {place}")
        return lines

    def _kind(self, kind: str, count: int) -> str:
        first = self.first_errors.get(kind)
        place = "" if first is None else f" ({'first: ' if count > 1 else ''}row {first:,})"
        return f"{count:,} {kind}{place}"
