"""conflicting-labels: rows of equal content with different labels."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Duplicates within train whose labels differ."""
    train = inspection.train
    labels = dict(zip(train.labeled, train.labels, strict=True))
    differing = {
        row: other
        for row, other in inspection.overlaps.exact
        if row in labels and other in labels and labels[row] != labels[other]
    }
    return report_rows(
        "conflicting-labels",
        "error",
        "rows of equal content have different labels",
        [(train, row) for row in differing],
        lambda split, row: (
            f"{', '.join(labels[row][:5])}, but {', '.join(labels[differing[row]][:5])} at "
            f"{train.table.place(differing[row])}"
        ),
        remedy="Decide for one label.",
    )
