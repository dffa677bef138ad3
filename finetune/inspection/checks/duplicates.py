"""duplicate, near-duplicate: rows that occur more than once in the training data."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Every occurrence but the first."""
    train, overlaps = inspection.train, inspection.overlaps
    exact = dict(overlaps.exact)
    near = {row: (other, share) for row, other, share in overlaps.near}
    findings = report_rows(
        "duplicate",
        "warn",
        "rows occur more than once in train",
        [(train, row) for row in exact],
        lambda split, row: f"as {train.table.place(exact[row])}",
        remedy="Remove them: repeated rows are memorized, and weigh more than others.",
    )
    return findings + report_rows(
        "near-duplicate",
        "info",
        "rows of train are almost equal to another",
        [(train, row) for row in near],
        lambda split, row: f"{near[row][1]:.0%} like {train.table.place(near[row][0])}",
        sampled=overlaps.sampled.get("train", ""),
    )
