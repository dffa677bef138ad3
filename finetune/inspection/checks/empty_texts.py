"""empty-text: rows whose text, prompt or reply is empty or blank."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Rows that are refused because a text is blank, and used rows with an empty turn."""
    reasons = {
        (name, one.id): one.reason
        for name, split in inspection.splits.items()
        for one in split.left_out
        if one.cause == "empty"
    }
    rows = [(inspection.splits[name], row) for name, row in reasons]
    for name, split in inspection.splits.items():
        used = set(split.row_ids.tolist())
        rows += [(split, row) for row in split.contents.blank if row in used and (name, row) not in reasons]
    return report_rows(
        "empty-text",
        "error" if inspection.stops and reasons else "warn",
        "rows contain an empty text",
        rows,
        lambda split, row: reasons.get((split.name, row), "the text of a turn is empty"),
        remedy="Remove the rows, or skip them with data.on_bad_row: skip.",
    )
