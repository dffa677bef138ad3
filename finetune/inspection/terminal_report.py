"""An inspection's report as lines for a terminal, of any width, with or without color."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from finetune.inspection.characters import visible
from finetune.inspection.findings import SEVERITIES, Finding
from finetune.inspection.padding import Padding
from finetune.inspection.report import InspectionReport
from finetune.inspection.shown import ShownRow, ShownSequence, Token
from finetune.inspection.statistics import Histogram, Table
from finetune.units import format_number

SHOWN_ROWS = 5  # of a finding
SHOWN_TOKENS = 400  # of a sequence, where several rows are shown
ROLE_WIDTH = 11
FIGURE = frozenset("0123456789.,%() -~")  # characters of cells that are aligned on the right
NARROW = 24  # columns to which cells are cut, at most
COLORS = {
    "error": "1;31",
    "warn": "1;33",
    "info": "1;36",
    "title": "1",
    "faint": "2",
    "learned": "1;32",
    "special": "36",
    "template": "2",
    "system": "35",
    "user": "34",
    "assistant": "32",
    "tool": "33",
}


@dataclass(frozen=True)
class Style:
    """width: columns. color: with ANSI colors. begin, end: around learned tokens; added: around those that a
    template adds; bar: between tokens; block, rule: of bars and lines; feed, tab: for line feeds and tabs.
    """

    width: int
    color: bool = False
    begin: str = "⟦"
    end: str = "⟧"
    added: str = "‹›"
    bar: str = "│"
    block: str = "█"
    rule: str = "─"
    feed: str = "⏎"
    tab: str = "⇥"

    def paint(self, text: str, kind: str) -> str:
        code = COLORS.get(kind)
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and code and text else text


ASCII = {"begin": "[[", "end": "]]", "added": "{}", "bar": "|", "block": "#", "rule": "-", "feed": "\\n", "tab": "\\t"}


def render(report: InspectionReport, style: Style, *, whole_rows: bool = False) -> Iterator[str]:
    """The lines of a report. whole_rows: all tokens of the rows that are shown."""
    yield style.paint(_fit(visible(report.title), style.width), "title")
    yield from _wrap(visible(report.subtitle), style.width)
    yield from _findings(report.findings, style)
    for note in report.notes:
        first, *rest = visible(note, line_feed="\n").split("\n")
        yield from _wrap(f"note: {first}", style.width, "      ")
        for line in rest:
            yield from _wrap(f"      {line}", style.width, "        ")
    yield from _heading("Splits", style)
    yield from _table(report.lengths, style)
    for title, drawn in report.histograms:
        yield from _heading(title, style)
        yield from _histogram(drawn, style)
    if report.padding is not None:
        yield from _padding(report.padding, style)
    for title, table in (("Labels", report.labels), ("Sources", report.sources), ("Characters", report.scripts)):
        if table is not None:
            yield from _heading(title, style)
            yield from _table(table, style)
    yield from _prompt(report, style)
    yield from _rows(report.rows, style, whole_rows)


def _findings(findings: Sequence[Finding], style: Style) -> Iterator[str]:
    counts = {severity: sum(one.severity == severity for one in findings) for severity in SEVERITIES}
    names = {"error": "error", "warn": "warning", "info": "note"}
    told = ", ".join(format_number(count, names[severity]) for severity, count in counts.items() if count)
    yield from _heading(f"Findings: {told or 'none'}", style)
    for one in findings:
        head = f"{one.severity:5}  {one.kind}"
        count = f" ({format_number(one.count, 'row')})" if one.rows else ""
        first, *rest = _wrap(f"{head}{count}: {visible(one.what)}", style.width, " " * 7)
        yield style.paint(first[: len(head)], one.severity) + first[len(head) :]
        yield from rest
        for row in one.rows[:SHOWN_ROWS]:
            where = f"{row.split} row {row.id}, {row.place}" if row.id is not None else f"{row.split}, {row.place}"
            yield from _wrap(f"{' ' * 7}{visible(where)}: {visible(row.note)}".rstrip(": "), style.width, " " * 9)
        if one.count > SHOWN_ROWS and one.rows:
            more = f"{' ' * 7}and {one.count - len(one.rows[:SHOWN_ROWS]):,} more (--html and --json list them)"
            yield from _wrap(more, style.width, " " * 7)
        for text in (one.remedy, f"Looked at {one.sampled}." if one.sampled else ""):
            yield from (
                style.paint(line, "faint") for line in _wrap(f"{' ' * 7}{visible(text)}", style.width, " " * 7) if text
            )


def _heading(title: str, style: Style) -> Iterator[str]:
    yield ""
    yield style.paint(_fit(title, style.width), "title")


def _table(table: Table, style: Style) -> Iterator[str]:
    """Columns as wide as their cells; wide ones are cut, or each row becomes a list, where the line is too narrow."""
    lines = [tuple(visible(cell) for cell in row) for row in (table.head, *table.rows)]
    widths = [max(cell_len(row[column]) for row in lines) for column in range(len(table.head))]
    while sum(widths) + 2 * len(widths) > style.width and max(widths) > NARROW:
        widths[widths.index(max(widths))] -= 1
    if sum(widths) + 2 * len(widths) > style.width:
        yield from _list(lines, style)
        return
    for number, row in enumerate(lines):
        cells = [
            _pad(cell, width, right=index > 0 and _is_figure(lines, index))
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  " + "  ".join(cells).rstrip()
        yield style.paint(line, "faint") if number == 0 else line
    if table.hidden:
        yield f"  and {table.hidden:,} more"


def _list(lines: Sequence[Sequence[str]], style: Style) -> Iterator[str]:
    """One line per cell: "  train", "    rows 200"."""
    for name, *cells in lines[1:]:
        yield from _wrap(f"  {name}", style.width, "  ")
        for head, cell in zip(lines[0][1:], cells, strict=True):
            yield from _wrap(f"    {head} {cell}", style.width, "      ")


def _is_figure(lines: Sequence[Sequence[str]], column: int) -> bool:
    return all(not set(row[column]) - FIGURE for row in lines[1:])


def _pad(text: str, width: int, *, right: bool) -> str:
    text = _fit(text, width)
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank


def _fit(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) > width - 3:
        text = text[:-1]
    return text + "..."


def bin_name(low: float, high: float, *, whole: bool) -> str:
    """The values of a bin: "40-59", "7", "0.5 to 0.75"."""
    if not whole:
        return f"{low:.3g} to {high:.3g}"
    return f"{low:,.0f}" if high - low <= 1 else f"{low:,.0f}-{high - 1:,.0f}"


def _histogram(drawn: Histogram, style: Style) -> Iterator[str]:
    whole = drawn.unit == "tokens"
    names = [bin_name(low, high, whole=whole) for low, high in zip(drawn.edges, drawn.edges[1:], strict=False)]
    wide = max(map(len, names))
    room = max(8, min(60, style.width - wide - 14))
    most = max(drawn.counts)
    for name, count in zip(names, drawn.counts, strict=True):
        bar = style.block * max(1 if count else 0, round(room * count / most)) if most else ""
        yield f"  {name:>{wide}}  {bar}{' ' if bar else ''}{count:,}"


def _padding(padding: Padding, style: Style) -> Iterator[str]:
    yield from _heading("Micro-batches", style)
    yield from _wrap(f"  {describe_padding(padding)}", style.width, "  ")
    for number, micro in enumerate(padding.first[:3], 1):
        rows = f" {style.bar} ".join(f"row {row}: {length}" for row, length in micro.rows[:12])
        more = f" and {len(micro.rows) - 12} more" if len(micro.rows) > 12 else ""
        free = f"; {padding.capacity - micro.positions:,} tokens free" if padding.packing == "packed" else ""
        padded = f"; {micro.padding:,} of {micro.positions:,} positions are padding" if not micro.borders else ""
        borders = f"; borders at {', '.join(map(str, micro.borders[1:-1][:12]))}" if len(micro.borders) > 2 else ""
        yield from _wrap(f"  {number}. {rows}{more}{borders}{free}{padded}", style.width, "     ")
    if len(padding.first) > 3:
        more = f"  and {len(padding.first) - 3} more micro-batches in the first step"
        yield from _wrap(more, style.width, "  ")


def describe_padding(padding: Padding) -> str:
    """One line: what the micro-batches of the first steps hold."""
    span = f"the first {padding.steps:,} of {padding.of_steps:,} steps per epoch, on one rank"
    count = "1 micro-batch" if padding.micro_batches == 1 else f"{padding.micro_batches:,} micro-batches"
    text = f"packing {padding.packing}: {count} in {span}; {padding.share:.1%} padding"
    return text + (f"; packs of {padding.capacity:,} tokens are {padding.filled:.1%} full" if padding.free else "")


def _prompt(report: InspectionReport, style: Style) -> Iterator[str]:
    if report.prompt is None:
        return
    yield from _heading("Training and inference", style)
    yield from _wrap(
        f"  {report.matching:,} of {report.compared:,} random prompts of inference are the beginning of the training text",
        style.width,
        "  ",
    )
    one = report.prompt
    yield from _wrap(f"  train row {one.row}, {visible(one.place)}", style.width, "  ")
    parts = (("both", one.shared), ("prompt ends", one.prompt_rest), ("training", one.trained_rest))
    for name, text in parts:
        if text:
            shown = visible(text, line_feed=style.feed, tab=style.tab)
            yield from _wrap(f"  {name:{ROLE_WIDTH}} {shown}", style.width, " " * (ROLE_WIDTH + 3))


def _rows(rows: Sequence[ShownRow], style: Style, whole: bool) -> Iterator[str]:
    yield from _heading("Rows", style)
    if any(row.sequences for row in rows):
        added = f"{style.added[0]}added by the template or tokenizer{style.added[1]}"
        legend = f"{style.begin}learned{style.end}  {added}  tokens are separated by {style.bar}"
        yield from (style.paint(line, "faint") for line in _wrap(f"  {legend}", style.width, "  "))
    for row in rows:
        yield ""
        head = f"{row.split} row {row.id} · {visible(row.place)} · {row.why}"
        yield style.paint(_fit(f"{style.rule * 2} {head} ", style.width), "title")
        if row.problem:
            yield from _wrap(f"  not used: {visible(row.problem)}", style.width, "  ")
        if row.labels and row.picture is None:
            yield from _wrap(f"  label  {visible(', '.join(row.labels))}", style.width, "         ")
        for sequence in row.sequences:
            yield from _sequence(sequence, style, len(sequence.tokens) if whole else SHOWN_TOKENS)
        if row.picture is not None:
            yield from _picture(row, style)


def _picture(row: ShownRow, style: Style) -> Iterator[str]:
    picture = row.picture
    assert picture is not None
    yield from _wrap(f"  image  {picture.summary}", style.width, "         ")
    if picture.mixed:
        yield f"  mixed  {visible(picture.mixed)}"
    elif picture.labels and not picture.boxes:
        yield from _wrap(f"  label  {visible(', '.join(picture.labels))}", style.width, "         ")
    for box in picture.boxes:
        corners = ", ".join(f"{value:.1f}" for value in box.corners)
        yield from _wrap(f"  box    {visible(box.label)} [{corners}]", style.width, "         ")


def _sequence(sequence: ShownSequence, style: Style, limit: int) -> Iterator[str]:
    learned = f", {sequence.learned:,} learned" if sequence.learned else ""
    name = f"{visible(sequence.name)}: " if sequence.name else ""
    yield f"  {name}{format_number(sequence.length, 'token')}{learned}"
    left = limit
    for speaker, tokens in sequence.turns:
        yield from _turn(speaker, tokens[:left], style)
        left -= len(tokens[:left])
        if not left:
            break
    hidden = sequence.length - min(limit, len(sequence.tokens))
    if hidden:
        more = "" if sequence.hidden else " (--row shows them)"
        yield from _wrap(
            f"  {'':{ROLE_WIDTH}} ... {format_number(hidden, 'more token')}{more}", style.width, " " * (ROLE_WIDTH + 3)
        )
    if sequence.cut_tokens:
        text = visible(sequence.cut_text, line_feed=style.feed, tab=style.tab)
        cut = f"  {'cut':{ROLE_WIDTH}} {format_number(sequence.cut_tokens, 'token')}: {text}"
        yield from (style.paint(line, "faint") for line in _wrap(cut, style.width, " " * (ROLE_WIDTH + 3)))


def _turn(speaker: str, tokens: Sequence[Token], style: Style) -> Iterator[str]:
    """The tokens of one turn, wrapped between tokens, in brackets if they are learned, and if a template adds them."""
    indent = " " * (ROLE_WIDTH + 3)
    room = max(16, style.width - len(indent))
    line, used, head = "", 0, f"  {style.paint(f'{visible(speaker):{ROLE_WIDTH}}', speaker)} "
    for token, text in zip(tokens, _marked(tokens, style), strict=True):
        for piece in _chunks(text, room):
            if used and used + cell_len(piece) > room:
                yield head + line
                line, used, head = "", 0, indent
            line += style.paint(piece, "learned" if token.learned else token.role)
            used += cell_len(piece)
    yield head + line


def _marked(tokens: Sequence[Token], style: Style) -> Iterator[str]:
    """The text of each token with its brackets and bars: "⟦One", "│ two", "‹<|im_end|>›⟧"."""
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else None
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        learns = before is not None and before.learned == token.learned
        stays = after is not None and after.learned == token.learned
        opens = token.added and not (before is not None and before.added and learns)
        closes = token.added and not (after is not None and after.added and stays)
        text = style.begin if token.learned and not learns else ""
        text += (
            style.added[0]
            if opens
            else ""
            if before is None or not learns or before.added != token.added
            else style.bar
        )
        text += visible(token.text, line_feed=style.feed, tab=style.tab) + (
            f"/{visible(token.tag)}" if token.tag else ""
        )
        text += style.added[1] if closes else ""
        yield text + (style.end if token.learned and not stays else "")


def _chunks(text: str, room: int) -> Iterator[str]:
    """A text in parts that fit on a line."""
    part = ""
    for character in text:
        if cell_len(part + character) > room:
            yield part
            part = ""
        part += character
    if part:
        yield part


def _wrap(text: str, width: int, indent: str = "") -> Iterator[str]:
    """Lines of at most `width` columns, broken at blanks where there are some; later ones are indented."""
    width = max(width, 30)
    lead = text[: len(text) - len(text.lstrip(" "))]
    line, empty = lead, True
    for word in text.strip(" ").split(" "):
        if not empty and cell_len(f"{line} {word}") > width >= cell_len(indent + word):
            yield line
            line, empty = indent, True
        for piece in _pieces(word, width - cell_len(line) - 1, width - len(indent)):
            if not empty and cell_len(line) + cell_len(piece) + 1 > width:
                yield line
                line, empty = indent, True
            line += piece if empty else f" {piece}"
            empty = False
    yield line


def _pieces(word: str, first: int, room: int) -> Iterator[str]:
    """A word that fits on a line, or parts of it: the first has `first` columns, the others `room`."""
    if cell_len(word) <= max(first, room):
        yield word
        return
    start = next(_chunks(word, first)) if first > 8 else ""
    if start:
        yield start
    yield from _chunks(word[len(start) :], room)
