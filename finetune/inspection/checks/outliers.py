"""long-outlier: rows that are far longer than the others."""

from __future__ import annotations

import numpy as np

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows

FACTOR = 10  # times the 95th percentile
FEWEST = 20  # rows from which a percentile says something


def check(inspection: Inspection) -> list[Finding]:
    """Rows with more than ten times the characters of 95 percent of the rows."""
    rows, usual = [], 0.0
    for split in inspection.splits.values():
        characters = split.contents.characters
        if len(characters) < FEWEST or not characters.any():
            continue
        usual = max(usual, float(np.percentile(characters, 95)))
        rows += [(split, row) for row in np.flatnonzero(characters > FACTOR * np.percentile(characters, 95)).tolist()]
    return report_rows(
        "long-outlier",
        "warn",
        f"rows are more than {FACTOR} times as long as 95% of the others ({usual:,.0f} characters)",
        rows,
        lambda split, row: f"{int(split.contents.characters[row]):,} characters",
        remedy="Check them: they may be whole files, or several rows joined by an unclosed quote.",
    )
