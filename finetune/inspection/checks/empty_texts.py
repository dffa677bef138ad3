"""empty-text: rows whose text, prompt or reply is empty or blank."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Rows that are refused because a text is blank, and used rows without any content."""
    reasons = {
        (name, one.id): one.reason
        for name, split in inspection.splits.items()
        for one in split.left_out
        if one.cause == "empty"
    }
    rows = [(inspection.splits[name], row) for name, row in reasons]
    for split in inspection.splits.values():
        rows += [(split, row) for row in split.rows_at(range(len(split.row_ids))) if not split.contents.hashes[row]]
    return report_rows(
        "empty-text",
        "error" if inspection.stops and reasons else "warn",
        "rows hold an empty text",
        rows,
        lambda split, row: reasons.get((split.name, row), "the row has no text"),
        remedy="Remove the rows, or skip them with data.on_bad_row: skip.",
    )
