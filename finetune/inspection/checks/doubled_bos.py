"""doubled-bos: examples that begin with two beginning-of-text tokens, which no model was pretrained on."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows


def check(inspection: Inspection) -> list[Finding]:
    """One of them is usually in the text, the other is the tokenizer's."""
    return report_rows(
        "doubled-bos",
        "warn",
        "examples begin with the beginning-of-text token twice",
        [
            (split, row)
            for split in inspection.splits.values()
            if split.tokens is not None
            for row in split.rows_at(split.tokens.doubled)
        ],
        remedy="Remove it from the texts, or from the chat template.",
    )
