"""odd-characters, invisible-characters: characters that are not meant for reading, such as controls and U+FFFD."""

from __future__ import annotations

import numpy as np

from finetune.inspection.characters import Trait, find_characters
from finetune.inspection.contents import row_text
from finetune.inspection.findings import Finding
from finetune.inspection.inspection import FoundRow, Inspection, report_rows

ODD = Trait.CONTROL | Trait.REPLACEMENT | Trait.BIDI | Trait.PRIVATE | Trait.SURROGATE


def check(inspection: Inspection) -> list[Finding]:
    """A warning for characters that show a decoding error or that hide something; a note for invisible ones."""
    findings = _find(
        inspection, ODD, "odd-characters", "warn", "rows contain control, replacement, bidi or private-use characters"
    )
    return findings + _find(
        inspection,
        Trait.INVISIBLE,
        "invisible-characters",
        "info",
        "rows contain zero-width or other invisible characters",
    )


def _find(inspection: Inspection, trait: Trait, kind: str, severity: str, what: str) -> list[Finding]:
    roles = inspection.task.card.rows.contents
    rows: list[FoundRow] = [
        (split, row)
        for split in inspection.splits.values()
        for row in np.flatnonzero(split.contents.traits & int(trait)).tolist()
    ]
    return report_rows(
        kind,
        "warn" if severity == "warn" else "info",
        what,
        rows,
        lambda split, row: find_characters(row_text(split.table[row], roles), trait),
        remedy="Check how the file was written and decoded.",
    )
