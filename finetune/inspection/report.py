"""What an inspection reports, as plain values: the terminal, the page and JSON show the same report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune.inspection.checks import run_checks
from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection
from finetune.inspection.padding import Padding
from finetune.inspection.pieces import token_texts
from finetune.inspection.shown import ShownRow, show_rows
from finetune.inspection.statistics import (
    Histogram,
    Table,
    histogram,
    label_table,
    length_table,
    script_table,
    source_table,
)
from finetune.units import format_number


@dataclass(frozen=True)
class ShownPrompt:
    """One comparison of training and inference: the prompt, and how the training text goes on after what they share."""

    place: str
    row: int
    same: bool
    shared: str
    prompt_rest: str
    trained_rest: str


@dataclass(frozen=True)
class InspectionReport:
    """title: the recipe's name. subtitle: task, model, splits. notes: what preparing the data reported.

    histograms: (title, histogram). compared, matching: prompts of inference that were compared, and those that match.
    """

    title: str
    subtitle: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    lengths: Table
    histograms: tuple[tuple[str, Histogram], ...]
    labels: Table | None
    sources: Table
    scripts: Table | None
    padding: Padding | None
    rows: tuple[ShownRow, ...]
    prompt: ShownPrompt | None
    compared: int
    matching: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values; pictures as their size, labels and boxes."""
        values = asdict(self)
        values["findings"] = [one.to_dict() for one in self.findings]
        for row in values["rows"]:
            if row["picture"]:
                del row["picture"]["uri"]
        if self.padding is not None:
            values["padding"] |= {"share": self.padding.share, "filled": self.padding.filled}
        return values


def make_report(
    inspection: Inspection, *, split: str, count: int, row: int | None, padding: Padding | None
) -> InspectionReport:
    """Run the checks and collect what is shown. count: rows of each kind. row: only this row of the split."""
    recipe, splits = inspection.plan.recipe, inspection.splits
    sizes = ", ".join(f"{name} {format_number(len(one.table), 'row')}" for name, one in splits.items())
    subtitle = f"{recipe.task.replace('_', ' ')} · {recipe.model.source} · {sizes}"
    rows = show_rows(inspection, splits[split], count=count, row=row, seed=recipe.seed)
    return InspectionReport(
        recipe.name,
        subtitle,
        tuple(run_checks(inspection)),
        (*inspection.notes, *sampling_notes(inspection)),
        length_table(splits),
        _histograms(inspection, split),
        label_table(splits, of_rows=getattr(inspection.artifacts.options, "problem", "") == "multi_label"),
        source_table(splits),
        script_table(splits),
        padding,
        tuple(rows),
        _prompt(inspection),
        len(inspection.prompts),
        sum(one.same for one in inspection.prompts),
    )


def sampling_notes(inspection: Inspection) -> list[str]:
    """What was looked at in part only, also where nothing was found."""
    notes = [f"near duplicates: looked at {what}" for what in inspection.overlaps.sampled.values()]
    for name, split in inspection.splits.items():
        if len(split.left_out) < split.left_out_count:
            notes.append(
                f"{name}: causes of {len(split.left_out):,} of {split.left_out_count:,} rows left out were found"
            )
        if split.tokens is not None and split.cuts_of < len(split.tokens.at_limit) and split.cuts:
            notes.append(
                f"{name}: {split.cuts_of:,} of {len(split.tokens.at_limit):,} examples at the limit were compared"
            )
    return notes


def _histograms(inspection: Inspection, name: str) -> tuple[tuple[str, Histogram], ...]:
    tokens = inspection.splits[name].tokens
    if tokens is None:
        return ()
    drawn = [(f"Tokens per example, {name}", histogram(tokens.lengths, "tokens"))]
    if tokens.supervises:
        drawn.append((f"Learned tokens per example, {name}", histogram(tokens.learned, "tokens")))
    if tokens.numbers is not None:
        drawn.append((f"Labels, {name}", histogram(tokens.numbers, "label")))
    return tuple((title, found) for title, found in drawn if found is not None)


def _prompt(inspection: Inspection) -> ShownPrompt | None:
    """The first prompt that differs, else the first."""
    if not inspection.prompts:
        return None
    one = next((one for one in inspection.prompts if not one.same), inspection.prompts[0])
    tokenizer, train = inspection.artifacts.processor, inspection.train

    def text(ids: Sequence[int]) -> str:
        return "".join(token_texts(tokenizer, ids))

    return ShownPrompt(
        train.table.place(one.row),
        one.row,
        one.same,
        text(one.prompt[: one.at]),
        text(one.prompt[one.at :]),
        text(one.trained[one.at : max(one.at + 8, len(one.prompt) + 1)]),
    )
