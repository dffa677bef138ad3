"""What an inspection found: kinds of findings with their severity, and the rows that they are about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warn", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warn", "info")
MAX_ROWS = 1000  # rows that a finding lists; `count` has no limit


@dataclass(frozen=True)
class RowRef:
    """A row of the data. id: its row id in the split, None for a row that a reader refused. place: file and row.

    note: what is wrong with this row.
    """

    split: str
    id: int | None
    place: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"split": self.split, "id": self.id, "place": self.place, "note": self.note}


@dataclass(frozen=True)
class Finding:
    """One kind of fault, with all rows that have it.

    kind: a short name that does not change ("leak"). severity: error: the model learns something wrong or nothing, or its
    figures are not to be trusted; warn: probably not intended; info: worth knowing. count: affected rows.
    sampled: of how many rows the check looked at a sample; "" if it looked at all.
    """

    kind: str
    severity: Severity
    what: str
    rows: tuple[RowRef, ...] = ()
    count: int = 0
    remedy: str = ""
    sampled: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "severity": self.severity,
            "what": self.what,
            "count": self.count,
            "rows": [row.to_dict() for row in self.rows],
            "remedy": self.remedy,
            "sampled": self.sampled,
        }


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; within them the kind with the most rows first."""
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), -one.count, one.kind))


def fails_strict(findings: Iterable[Finding]) -> bool:
    """Whether `--strict` ends with exit code 1: there is an error or a warning."""
    return any(one.severity != "info" for one in findings)
