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
        lambda split, row: f"{_difference(labels[row], labels[differing[row]])} at {train.table.place(differing[row])}",
        remedy="Choose one label for each group of equal rows.",
    )


def _difference(own: list[str], other: list[str]) -> str:
    """What differs: "bad, but good", or of tags the first that do: "label 3: O, but B-person"."""
    if len(own) == len(other) > 1:
        place = next(index for index, (one, two) in enumerate(zip(own, other, strict=True)) if one != two)
        return f"label {place + 1}: {own[place]}, but {other[place]}"
    return f"{', '.join(own) or 'none'}, but {', '.join(other) or 'none'}"
