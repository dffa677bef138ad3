"""reply-cut, text-cut: examples that the limit on tokens has cut, with or without tokens that would have been learned."""

from __future__ import annotations

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows

MANY = 0.01  # share of cut texts from which a note becomes a warning


def check(inspection: Inspection) -> list[Finding]:
    """Compares each example at its limit with the same row encoded without a limit."""
    notes: dict[tuple[str, int], str] = {}
    lost: dict[tuple[str, int], None] = {}
    cut: dict[tuple[str, int], None] = {}
    looked_at = at_limit = examples = 0
    for name, split in inspection.splits.items():
        if split.tokens is None:
            continue
        looked_at, at_limit = looked_at + split.cuts_of, at_limit + len(split.tokens.at_limit)
        examples += len(split.row_ids)
        for one in split.cuts:
            key = (name, int(split.row_ids[one.position]))
            what = f"{one.name}: " if one.name else ""
            missing = f", of which {one.lost:,} were to be learned" if one.lost else ""
            notes[key] = f"{what}{one.kept:,} of {one.whole:,} tokens are kept; {one.whole - one.kept:,} cut{missing}"
            (lost if one.lost else cut)[key] = None
    sampled = f"{looked_at:,} of {at_limit:,} examples at the limit" if looked_at < at_limit else ""
    remedy = "Raise options.max_length, or choose another options.on_long."
    findings = report_rows(
        "reply-cut",
        "warn",
        "replies are cut at the limit on tokens: the model does not learn how they end",
        [(inspection.splits[name], row) for name, row in lost],
        lambda split, row: notes[split.name, row],
        remedy=remedy,
        sampled=sampled,
    )
    return findings + report_rows(
        "text-cut",
        "warn" if len(cut) > MANY * examples else "info",
        "texts are cut at the limit on tokens",
        [(inspection.splits[name], row) for name, row in cut],
        lambda split, row: notes[split.name, row],
        remedy=remedy,
        sampled=sampled,
    )
