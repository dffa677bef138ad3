"""Lines of a terminal report: colors, wrapped text, tables and histograms for any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from finetune.inspection.characters import visible
from finetune.inspection.statistics import Histogram, Table, bin_name

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


def heading(title: str, style: Style) -> Iterator[str]:
    """An empty line and a title."""
    yield ""
    yield style.paint(fit(title, style.width), "title")


def table_lines(table: Table, style: Style) -> Iterator[str]:
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
        yield from wrap(f"  {name}", style.width, "  ")
        for head, cell in zip(lines[0][1:], cells, strict=True):
            yield from wrap(f"    {head} {cell}", style.width, "      ")


def _is_figure(lines: Sequence[Sequence[str]], column: int) -> bool:
    return all(not set(row[column]) - FIGURE for row in lines[1:])


def _pad(text: str, width: int, *, right: bool) -> str:
    text = fit(text, width)
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank


def fit(text: str, width: int) -> str:
    """The text in at most `width` columns, "..." in place of what is cut."""
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) > width - 3:
        text = text[:-1]
    return text + "..."


def histogram_lines(drawn: Histogram, style: Style) -> Iterator[str]:
    """A line with a bar for each bin."""
    whole = drawn.unit == "tokens"
    names = [bin_name(low, high, whole=whole) for low, high in zip(drawn.edges, drawn.edges[1:], strict=False)]
    wide = max(map(len, names))
    room = max(8, min(60, style.width - wide - 14))
    most = max(drawn.counts)
    for name, count in zip(names, drawn.counts, strict=True):
        bar = style.block * max(1 if count else 0, round(room * count / most)) if most else ""
        yield f"  {name:>{wide}}  {bar}{' ' if bar else ''}{count:,}"


def wrap(text: str, width: int, indent: str = "") -> Iterator[str]:
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
    start = next(chunks(word, first)) if first > 8 else ""
    if start:
        yield start
    yield from chunks(word[len(start) :], room)


def chunks(text: str, room: int) -> Iterator[str]:
    """A text in parts that fit on a line."""
    part = ""
    for character in text:
        if cell_len(part + character) > room:
            yield part
            part = ""
        part += character
    if part:
        yield part
