"""unusable-row: rows that a reader or the task refuses, for a reason that no other check is about."""

from __future__ import annotations

from finetune.inspection.findings import MAX_ROWS, Finding, RowRef, Severity
from finetune.inspection.inspection import Inspection


def check(inspection: Inspection) -> list[Finding]:
    """Rows that cannot be read, without a value that the task needs, with a label that is none."""
    severity: Severity = "error" if inspection.stops else "warn"
    rows, count = [], 0
    for split in inspection.splits.values():
        rows += [RowRef(split.name, None, place, reason) for place, reason in split.refused]
        other = [one for one in split.left_out if one.cause == "other"]
        rows += [RowRef(split.name, one.id, one.place, one.reason) for one in other]
        count += split.refused_count + len(other) + split.left_out_count - len(split.left_out)
    if not count:
        return []
    remedy = "Fix the rows, or skip them (they are counted) with data.on_bad_row: skip."
    return [Finding("unusable-row", severity, "rows cannot be used", tuple(rows[:MAX_ROWS]), count, remedy)]
