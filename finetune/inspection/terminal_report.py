"""An inspection's report as lines for a terminal, of any width, with or without color."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune.inspection.characters import visible
from finetune.inspection.findings import SEVERITIES, Finding
from finetune.inspection.padding import Padding, describe_padding
from finetune.inspection.report import InspectionReport
from finetune.inspection.terminal_lines import Style, fit, heading, histogram_lines, table_lines, wrap
from finetune.inspection.terminal_rows import ROLE_WIDTH, row_lines
from finetune.units import format_number

SHOWN_ROWS = 5  # of a finding


def render(report: InspectionReport, style: Style, *, whole_rows: bool = False) -> Iterator[str]:
    """The lines of a report. whole_rows: all tokens of the rows that are shown."""
    yield style.paint(fit(visible(report.title), style.width), "title")
    yield from wrap(visible(report.subtitle), style.width)
    yield from _findings(report.findings, style)
    for note in report.notes:
        first, *rest = visible(note, line_feed="\n").split("\n")
        yield from wrap(f"note: {first}", style.width, "      ")
        for line in rest:
            yield from wrap(f"      {line}", style.width, "        ")
    yield from heading("Splits", style)
    yield from table_lines(report.lengths, style)
    for title, drawn in report.histograms:
        yield from heading(title, style)
        yield from histogram_lines(drawn, style)
    if report.padding is not None:
        yield from _padding(report.padding, style)
    for title, table in (("Labels", report.labels), ("Sources", report.sources), ("Characters", report.scripts)):
        if table is not None:
            yield from heading(title, style)
            yield from table_lines(table, style)
    yield from _prompt(report, style)
    yield from row_lines(report.rows, style, whole_rows)


def _findings(findings: Sequence[Finding], style: Style) -> Iterator[str]:
    counts = {severity: sum(one.severity == severity for one in findings) for severity in SEVERITIES}
    names = {"error": "error", "warn": "warning", "info": "note"}
    summary = ", ".join(format_number(count, names[severity]) for severity, count in counts.items() if count)
    yield from heading(f"Findings: {summary or 'none'}", style)
    for one in findings:
        head = f"{one.severity:5}  {one.kind}"
        count = f" ({format_number(one.count, 'row')})" if one.rows else ""
        first, *rest = wrap(f"{head}{count}: {visible(one.what)}", style.width, " " * 7)
        yield style.paint(first[: len(head)], one.severity) + first[len(head) :]
        yield from rest
        for row in one.rows[:SHOWN_ROWS]:
            where = f"{row.split} row {row.id}, {row.place}" if row.id is not None else f"{row.split}, {row.place}"
            yield from wrap(f"{' ' * 7}{visible(where)}: {visible(row.note)}".rstrip(": "), style.width, " " * 9)
        if one.count > SHOWN_ROWS and one.rows:
            more = f"{' ' * 7}and {one.count - len(one.rows[:SHOWN_ROWS]):,} more (--html and --json list them)"
            yield from wrap(more, style.width, " " * 7)
        for text in (one.remedy, f"Looked at {one.sampled}." if one.sampled else ""):
            yield from (
                style.paint(line, "faint") for line in wrap(f"{' ' * 7}{visible(text)}", style.width, " " * 7) if text
            )


def _padding(padding: Padding, style: Style) -> Iterator[str]:
    yield from heading("Micro-batches", style)
    yield from wrap(f"  {describe_padding(padding)}", style.width, "  ")
    for number, micro in enumerate(padding.first[:3], 1):
        rows = f" {style.bar} ".join(f"row {row}: {length}" for row, length in micro.rows[:12])
        more = f" and {len(micro.rows) - 12} more" if len(micro.rows) > 12 else ""
        free = f"; {padding.capacity - micro.positions:,} tokens free" if padding.packing == "packed" else ""
        padded = f"; {micro.padding:,} of {micro.positions:,} positions are padding" if not micro.borders else ""
        borders = f"; borders at {', '.join(map(str, micro.borders[1:-1][:12]))}" if len(micro.borders) > 2 else ""
        yield from wrap(f"  {number}. {rows}{more}{borders}{free}{padded}", style.width, "     ")
    if len(padding.first) > 3:
        more = f"  and {len(padding.first) - 3} more micro-batches in the first step"
        yield from wrap(more, style.width, "  ")


def _prompt(report: InspectionReport, style: Style) -> Iterator[str]:
    if report.prompt is None:
        return
    yield from heading("Training and inference", style)
    yield from wrap(
        f"  {report.matching:,} of {report.compared:,} random prompts of inference are the beginning of the training text",
        style.width,
        "  ",
    )
    one = report.prompt
    yield from wrap(f"  train row {one.row}, {visible(one.place)}", style.width, "  ")
    parts = (("both", one.shared), ("prompt ends", one.prompt_rest), ("training", one.trained_rest))
    for name, text in parts:
        if text:
            shown = visible(text, line_feed=style.feed, tab=style.tab)
            yield from wrap(f"  {name:{ROLE_WIDTH}} {shown}", style.width, " " * (ROLE_WIDTH + 3))
