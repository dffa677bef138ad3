"""nothing-learned: rows without a single token to learn."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Conversations without an assistant, templates that mark no reply, words without a label."""
    reasons = {
        (name, one.id): one.reason
        for name, split in inspection.splits.items()
        for one in split.left_out
        if one.cause == "unlearned"
    }
    for name, split in inspection.splits.items():
        for row in split.rows_at(split.tokens.unlearned if split.tokens is not None else ()):
            reasons[name, row] = "no token of the example is learned"
    return report_rows(
        "nothing-learned",
        "error",
        "rows teach nothing: no token of them is learned",
        [(inspection.splits[name], row) for name, row in reasons],
        lambda split, row: reasons[split.name, row],
        remedy="Check that the rows have a reply, and that the chat template marks it.",
    )
