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
    used = []
    for name, split in inspection.splits.items():
        rows = set(split.row_ids.tolist())
        used += [(split, row) for row in split.contents.blank if row in rows and (name, row) not in reasons]
    refused = report_rows(
        "empty-text",
        "error" if inspection.stops else "warn",
        "rows contain an empty text",
        [(inspection.splits[name], row) for name, row in reasons],
        lambda split, row: reasons[split.name, row],
        remedy="Remove the rows, or skip them with data.on_bad_row: skip.",
    )
    return refused + report_rows(
        "empty-text",
        "warn",
        "rows with an empty turn are used as they are",
        used,
        lambda split, row: "the text of a turn is empty",
        remedy="Fill the turn, or remove the rows.",
    )
