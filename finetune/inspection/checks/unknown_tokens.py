"""unknown-tokens: texts with parts that the tokenizer does not know."""

from __future__ import annotations

import numpy as np

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows

MANY = 0.01  # share of unknown tokens over all splits from which the note becomes a warning


def check(inspection: Inspection) -> list[Finding]:
    """The model sees the same token for every unknown part."""
    splits = [split for split in inspection.splits.values() if split.tokens is not None]
    unknown = sum(int(split.tokens.unknown.sum()) for split in splits if split.tokens)
    tokens = sum(int(split.tokens.lengths.sum()) for split in splits if split.tokens)
    counts = {
        (split.name, int(split.row_ids[place])): int(split.tokens.unknown[place])
        for split in splits
        if split.tokens
        for place in np.flatnonzero(split.tokens.unknown).tolist()
    }
    return report_rows(
        "unknown-tokens",
        "warn" if unknown > MANY * tokens else "info",
        f"rows contain tokens that the tokenizer does not know ({unknown:,} of {tokens:,})",
        [(inspection.splits[name], row) for name, row in counts],
        lambda split, row: f"{counts[split.name, row]:,} unknown",
    )
