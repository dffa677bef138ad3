"""broken-image: images that cannot be decoded."""

from __future__ import annotations

from finetune.data.bad_rows import hint_on_absence
from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Every image was decoded in full when the data was prepared."""
    reasons = {
        (name, one.id): one.reason
        for name, split in inspection.splits.items()
        for one in split.left_out
        if one.cause == "image"
    }
    return report_rows(
        "broken-image",
        "error" if inspection.stops else "warn",
        "images cannot be decoded",
        [(inspection.splits[name], row) for name, row in reasons],
        lambda split, row: reasons[split.name, row],
        remedy=hint_on_absence(list(reasons.values()))
        + "Replace the files, or skip them (they are counted) with data.on_bad_row: skip.",
    )
