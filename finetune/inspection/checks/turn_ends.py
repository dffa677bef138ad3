"""end-of-turn: replies whose end mark is not learned, so that the model would not stop."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows
from finetune.inspection.tokens import ending_tokens


def check(inspection: Inspection) -> list[Finding]:
    """Every run of learned tokens must hold an end-of-turn or end-of-text token; runs that were cut are reported there."""
    supervised = [split for split in inspection.splits.values() if split.tokens is not None and split.tokens.supervises]
    if not supervised:
        return []
    tokenizer = inspection.artifacts.processor
    marks = ", ".join(tokenizer.convert_ids_to_tokens(ending_tokens(tokenizer))) or "none"
    return report_rows(
        "end-of-turn",
        "error",
        f"replies whose end is not learned (end marks: {marks}): the model would not know when to stop",
        [(split, row) for split in supervised if split.tokens for row in split.rows_at(split.tokens.unended)],
        remedy="Put the end-of-turn token inside {% generation %} ... {% endgeneration %} of the chat template.",
    )
