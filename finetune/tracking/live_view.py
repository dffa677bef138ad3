"""What a terminal shows of a running training: a line of figures, the curve of the loss in characters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich import console as terminal
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune.terminal import VIEW_LINES

MAX_POINTS = 1024  # of the curve; more are averaged in pairs
MIN_HEIGHT = 16  # lines of a terminal that has space for the curve
MAX_WIDTH = 160  # columns of the curve

# Bit of each dot of a braille character, by row (from above) and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_CURVE_LINES = VIEW_LINES - 2  # besides the line of figures and the last evaluation


class Curve:
    """Values of a whole training in bounded memory: when there are MAX_POINTS, neighbors are averaged."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self.stride = 1  # values per point
        self._open: list[float] = []

    def add(self, value: float) -> None:
        self._open.append(value)
        if len(self._open) < self.stride:
            return
        self.points.append(sum(self._open) / len(self._open))
        self._open = []
        if len(self.points) >= MAX_POINTS:
            self.points = [(one + other) / 2 for one, other in zip(self.points[::2], self.points[1::2], strict=True)]
            self.stride *= 2


def draw_curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """`height` lines of `width` braille characters: the values from the first to the last, the largest on top.

    Each dot column is the mean of its share of the values; columns between two of few values are interpolated.
    """
    columns, rows = width * 2, height * 4
    levels = _resample(values, columns)
    low, high = min(levels), max(levels)
    cells = [[0] * width for _ in range(height)]
    before: int | None = None
    for column, value in enumerate(levels):
        row = rows // 2 if high == low else round((high - value) / (high - low) * (rows - 1))
        jump = range(row, row + 1)  # drawn as a vertical line, from beside the column before
        if before is not None and row != before:
            jump = range(before + 1, row + 1) if row > before else range(row, before)
        for dot in jump:
            cells[dot // 4][column // 2] |= _DOTS[dot % 4][column % 2]
        before = row
    return ["".join(chr(0x2800 + bits) for bits in line) for line in cells]


def _resample(values: Sequence[float], count: int) -> list[float]:
    if len(values) >= count:
        edges = [index * len(values) // count for index in range(count + 1)]
        return [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    levels = []
    for index in range(count):
        place = index * (len(values) - 1) / max(count - 1, 1)
        left = int(place)
        right = min(left + 1, len(values) - 1)
        levels.append(values[left] + (values[right] - values[left]) * (place - left))
    return levels


def fit_parts(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Parts of a line, joined in their order. While they are wider than `width`, the one of the largest number goes first."""
    kept = list(parts)
    while len(kept) > 1 and len(" · ".join(text for _, text in kept)) > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    return " · ".join(text for _, text in kept)


def figures_line(console: terminal.Console, step: int, total: int, parts: Sequence[tuple[int, str]]) -> Table:
    """A bar, the step, and as many of the parts as fit."""
    count = f"{step}/{total}"
    bar = max(4, min(24, console.width // 8))
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(width=bar)
    grid.add_column(no_wrap=True, width=len(count))
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    text = fit_parts(parts, console.width - bar - len(count) - 3)
    grid.add_row(ProgressBar(total=max(total, 1), completed=step, width=bar), Text(count, style="bold"), Text(text))
    return grid


def curve_lines(console: terminal.Console, values: Sequence[float], labels: tuple[str, str], name: str) -> list[Text]:
    """The curve with its extremes at the left; none in a terminal that is too small, or has no braille characters.

    labels: the largest and the smallest value as text.
    """
    if len(values) < 2 or console.height < MIN_HEIGHT or console.options.ascii_only:
        return []
    margin = max(len(name), *map(len, labels)) + 1
    width = min(console.width - margin - 1, MAX_WIDTH)
    if width < 10:
        return []
    lines = draw_curve(values, width, _CURVE_LINES)
    heads = [labels[0], *[""] * (_CURVE_LINES - 2), labels[1]]
    heads[_CURVE_LINES // 2] = name
    return [
        Text.assemble((f"{head:>{margin - 1}} ", "dim"), (line, "cyan"), no_wrap=True, overflow="crop")
        for head, line in zip(heads, lines, strict=True)
    ]
