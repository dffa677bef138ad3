"""box: boxes outside their image, without area, or of no known class."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Rows that are refused because of a box, and boxes that are left out of rows that are kept."""
    reasons: dict[tuple[str, int], str] = {}
    for name, split in inspection.splits.items():
        for row, why in split.bad_boxes:
            reasons[name, row] = "; ".join(filter(None, (reasons.get((name, row), ""), why)))
        reasons |= {(name, one.id): one.reason for one in split.left_out if one.cause == "boxes"}
    return report_rows(
        "box",
        "error" if inspection.stops else "warn",
        "images have boxes that cannot be used",
        [(inspection.splits[name], row) for name, row in reasons],
        lambda split, row: reasons[split.name, row],
        remedy="Fix the boxes, or leave them out (they are counted) with data.on_bad_row: skip.",
    )
