"""prompt-cut: rows whose prompt alone is longer than the limit, so that nothing of the reply is left."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Rows that are refused at the recipe's limit on tokens, and would not be without it."""
    reasons = {
        (name, one.id): one.reason
        for name, split in inspection.splits.items()
        for one in split.left_out
        if one.cause == "length"
    }
    return report_rows(
        "prompt-cut",
        "error" if inspection.stops else "warn",
        "rows whose prompt fills the limit on tokens: nothing of the reply is left to learn",
        [(inspection.splits[name], row) for name, row in reasons],
        lambda split, row: reasons[split.name, row],
        remedy="Raise the limit that is named, or leave long rows out with options.on_long: drop.",
    )
