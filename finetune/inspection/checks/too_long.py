"""too-long: rows that options.on_long: drop leaves out."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Rows that the recipe itself asks to leave out; a note."""
    return report_rows(
        "too-long",
        "info",
        "rows are longer than the limit on tokens and are left out (options.on_long: drop)",
        [(split, one.id) for split in inspection.splits.values() for one in split.left_out if one.cause == "dropped"],
    )
