"""leak, near-leak: rows of other splits that are in the training data as well."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Equal contents whatever the label, and near ones."""
    train, overlaps = inspection.train, inspection.overlaps
    exact = {(name, row): other for name, pairs in overlaps.leaks.items() for row, other in pairs}
    near = {(name, row): (other, share) for name, pairs in overlaps.near_leaks.items() for row, other, share in pairs}
    remedy = "Remove them from one of the splits: metrics on training rows say nothing about new rows."
    findings = report_rows(
        "leak",
        "error",
        "rows of validation or test are also in train",
        [(inspection.splits[name], row) for name, row in exact],
        lambda split, row: f"also at {train.table.place(exact[split.name, row])}",
        remedy=remedy,
    )
    return findings + report_rows(
        "near-leak",
        "warn",
        "rows of validation or test are almost equal to rows of train",
        [(inspection.splits[name], row) for name, row in near],
        lambda split, row: f"{near[split.name, row][1]:.0%} like {train.table.place(near[split.name, row][0])}",
        remedy=remedy,
        sampled=", ".join(overlaps.sampled.values()),
    )
