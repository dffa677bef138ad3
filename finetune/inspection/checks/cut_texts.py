"""reply-cut, text-cut: examples that the limit on tokens has cut, with or without tokens that would have been learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows
from finetune.inspection.left_out import Cut
from finetune.tasks.text.limits import KEY, OPTION, SOURCE_OPTION

MANY = 0.01  # share of cut texts from which a note becomes a warning


def check(inspection: Inspection) -> list[Finding]:
    """Compares each example at its limit with the same row encoded without a limit."""
    lost: dict[tuple[str, int], list[Cut]] = {}
    cut: dict[tuple[str, int], list[Cut]] = {}
    looked_at = at_limit = examples = 0
    for name, split in inspection.splits.items():
        if split.tokens is None:
            continue
        looked_at, at_limit = looked_at + split.cuts_of, at_limit + len(split.tokens.at_limit)
        examples += len(split.row_ids)
        for one in split.cuts:
            (lost if one.lost else cut).setdefault((name, int(split.row_ids[one.position])), []).append(one)
    sampled = f"{looked_at:,} of {at_limit:,} examples at the limit" if looked_at < at_limit else ""
    findings = report_rows(
        "reply-cut",
        "warn",
        f"texts to be learned are cut at the limit on tokens: the model {_learned_end(lost)}",
        [(inspection.splits[name], row) for name, row in lost],
        lambda split, row: _describe(lost[split.name, row]),
        remedy=_remedy(lost, inspection),
        sampled=sampled,
    )
    return findings + report_rows(
        "text-cut",
        "warn" if len(cut) > MANY * examples else "info",
        "texts are cut at the limit on tokens",
        [(inspection.splits[name], row) for name, row in cut],
        lambda split, row: _describe(cut[split.name, row]),
        remedy=_remedy(cut, inspection),
        sampled=sampled,
    )


def _describe(cuts: Sequence[Cut]) -> str:
    """What was cut from the sequences of a row."""
    sentences = []
    for one in cuts:
        what = f"{one.name}: " if one.name else ""
        missing = f", {one.lost:,} of them to be learned" if one.lost else ""
        sentences.append(f"{what}{one.kept:,} of {one.whole:,} tokens are kept; {one.whole - one.kept:,} cut{missing}")
    return "; ".join(sentences)


def _learned_end(lost: Mapping[tuple[str, int], Sequence[Cut]]) -> str:
    """What a model learns of the ends of these texts: those of seq2seq keep their end mark behind the cut."""
    ends = all(one.ends for row in lost.values() for one in row if one.lost)
    return "learns to end where they are cut" if ends else "does not learn how they end"


def _remedy(cuts: Mapping[tuple[str, int], Sequence[Cut]], inspection: Inspection) -> str:
    """Names the limits that were reached."""
    sides = {one.name for row in cuts.values() for one in row}
    names = [f"options.max_{side}_length" for side in ("source", "target") if side in sides]
    setter = inspection.artifacts.settings.get(KEY, OPTION)
    if setter not in (OPTION, SOURCE_OPTION) and sides != {"target"}:
        return f"The limit is {setter}: change it if it can be changed, or choose another options.on_long."
    names = names or [OPTION]
    return f"Raise {' and '.join(names)}, or choose another options.on_long."
