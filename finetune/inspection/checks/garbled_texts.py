"""mojibake, mixed-scripts: texts decoded with the wrong encoding, and words of letters from two scripts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from finetune.inspection.characters import Trait, find_mixed_word, find_mojibake
from finetune.inspection.contents import row_text
from finetune.inspection.findings import Finding
from finetune.inspection.inspection import FoundRow, Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """Only rows whose characters make it possible are read again."""
    traits = {name: split.contents.traits for name, split in inspection.splits.items()}
    foreign = int(Trait.CYRILLIC | Trait.GREEK)
    mixed = {
        name: np.flatnonzero(((found & int(Trait.LATIN)) > 0) & ((found & foreign) > 0))
        for name, found in traits.items()
    }
    bytes_like = {name: np.flatnonzero(found & int(Trait.BYTES)) for name, found in traits.items()}
    garbled = _search(inspection, bytes_like, find_mojibake)
    words = _search(inspection, mixed, find_mixed_word)
    findings = report_rows(
        "mojibake",
        "warn",
        "texts look like UTF-8 that was read in another encoding",
        garbled,
        lambda split, row: garbled[split, row],
        remedy="Decode the file as UTF-8.",
    )
    return findings + report_rows(
        "mixed-scripts",
        "warn",
        "words mix letters of several scripts that look alike",
        words,
        lambda split, row: words[split, row],
        remedy="Replace the letters that only look similar: the tokenizer sees different words.",
    )


def _search(inspection: Inspection, rows: dict[str, np.ndarray], find: Callable[[str], str]) -> dict[FoundRow, str]:
    roles = inspection.task.card.rows.contents
    found = {}
    for name, candidates in rows.items():
        split = inspection.splits[name]
        for row in candidates.tolist():
            if what := find(row_text(split.table[row], roles)):
                found[split, row] = what
    return found
