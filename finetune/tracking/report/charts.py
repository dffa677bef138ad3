"""Curves as inline SVG whose colors are CSS variables, so that the page controls light and dark mode; and their points as
JSON, from which page.js reads values out and draws enlarged parts.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from finetune.tracking.series import Series, smooth, thin
from finetune.units import format_count

# Placeholder colors, replaced by CSS variables in the SVG; the palette follows Okabe and Ito (color-blind safe).
_INK, _GRID = "#0a0b0c", "#0a0b0d"
_SERIES = tuple(f"#0a0b1{index}" for index in range(6))
_VARIABLES = {_INK: "--soft", _GRID: "--line"} | {code: f"--series-{index}" for index, code in enumerate(_SERIES, 1)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and in the font of the page
    "svg.hashsalt": "finetune",
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.size": 10,
    "path.simplify": True,
}


MARGIN = 0.2  # of an axis: figures between 0 and 1 that lie close together do not fill it


@dataclass(frozen=True)
class Line:
    """One curve. points: draw each value with a marker (for few values, such as evaluations). exact: never smoothed.

    by_epoch: over epochs in place of steps. plain: a diagonal or the like, without a name and drawn dashed.
    """

    label: str
    series: Series
    points: bool = False
    exact: bool = False
    by_epoch: bool = False
    plain: bool = False


@dataclass(frozen=True)
class Drawing:
    """svg: markup made here. data: JSON that page.js reads, safe inside of <script>. legend: (label, CSS variable)."""

    svg: str
    data: str
    legend: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.svg)


NOTHING = Drawing("", "", ())


def draw_chart(
    title: str,
    lines: Sequence[Line],
    *,
    zero: bool = False,
    share: bool = False,
    across: str = "",
    size: tuple[float, float] = (6.2, 2.9),
) -> Drawing:
    """The lines over steps (or epochs); NOTHING if there are no values.

    zero: the axis starts at 0. share: values between 0 and 1, whose axis spans at least MARGIN. across: what the horizontal
    axis shows; "": step or epoch. Positive values that mostly span more than a factor of 100 get a logarithmic axis.
    size: in inches of 72 points.
    """
    lines = [line for line in lines if len(line.series)]
    if not lines:
        return NOTHING
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for line, color in zip(lines, _colors(lines), strict=True):
            _draw(axes, line, _SERIES[color])
        _format_axes(axes, lines, zero, share, across)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
        plot = _plot_area(axes)
    named = zip(lines, _colors(lines), strict=True)
    shown = [(line.label, f"--series-{color + 1}") for line, color in named if not line.plain]
    about = _described(title, lines)
    return Drawing(_inline(buffer.getvalue(), about), _data(lines, plot, across), tuple(shown))


def _colors(lines: Sequence[Line]) -> list[int]:
    """The color of each line, by its place among those that have a name: the same class has the same color in two charts."""
    named = 0
    found = []
    for line in lines:
        found.append(named % len(_SERIES))
        named += not line.plain
    return found


def _described(title: str, lines: Sequence[Line]) -> str:
    """For screen readers: the lines with their first and last values."""
    parts = []
    for line in lines:
        first, last = float(line.series.values[0]), float(line.series.values[-1])
        ends = f"from {_tick(first, 0)} to {_tick(last, 0)}" if len(line.series) > 1 else _tick(last, 0)
        parts += [] if line.plain else [f"{line.label} {ends}"]
    return f"{title}: {', '.join(parts)}"


def _plot_area(axes: Axes) -> dict[str, Any]:
    """Where the axes are in the picture, as fractions of it from the left and the top, and what range they show."""
    box = axes.get_position()
    return {
        "box": [round(value, 5) for value in (box.x0, 1 - box.y1, box.x1, 1 - box.y0)],
        "x": [float(value) for value in axes.get_xlim()],
        "y": [float(value) for value in axes.get_ylim()],
        "log": axes.get_yscale() == "log",
    }


def _data(lines: Sequence[Line], plot: dict[str, Any], across: str) -> str:
    drawn = []
    for line, color in zip(lines, _colors(lines), strict=True):
        xs, ys = _points(line)
        points = [[float(f"{x:.6g}"), float(f"{y:.5g}")] for x, y in zip(xs, ys, strict=True)]
        drawn.append(
            {
                "label": line.label,
                "color": color + 1,
                "points": points,
                "plain": line.plain,
                "dots": line.points,
            }
        )
    over = across or ("epoch" if all(line.by_epoch for line in lines) else "step")
    value = {**plot, "across": over, "lines": drawn}
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def _points(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn of a line: all of its points, or the (smoothed) means of intervals."""
    if line.points or line.plain:
        return (line.series.epochs if line.by_epoch else line.series.steps), line.series.values
    few = thin(line.series)
    smoothed = not line.exact and len(few.mean) >= 80
    return few.steps, smooth(few.mean) if smoothed else few.mean


def _draw(axes: Axes, line: Line, color: str) -> None:
    series = line.series
    if line.plain:
        axes.plot(series.steps, series.values, color=_GRID, linewidth=1.4, linestyle=(0, (4, 3)))
        return
    if line.points:
        across = series.epochs if line.by_epoch else series.steps
        marker = "o" if len(series) <= 60 else ""
        axes.plot(across, series.values, color=color, marker=marker, markersize=4.5, linewidth=1.8)
        return
    few = thin(series)
    if not line.exact and len(few.mean) >= 80:
        axes.fill_between(few.steps, few.low, few.high, color=color, alpha=0.18, linewidth=0)
        if len(series) == len(few.mean):
            axes.plot(few.steps, few.mean, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(few.steps, smooth(few.mean), color=color, linewidth=1.9)
    else:
        marker = "o" if len(few.mean) == 1 else ""
        axes.plot(few.steps, few.mean, color=color, linewidth=1.9, marker=marker)


def _format_axes(axes: Axes, lines: Sequence[Line], zero: bool, share: bool, across: str) -> None:
    values = np.concatenate([line.series.values for line in lines])
    low, high = float(values.min()), float(values.max())
    if low > 0 and not zero and not share and np.quantile(values, 0.98) / np.quantile(values, 0.02) > 100:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    elif zero and low >= 0:
        axes.set_ylim(bottom=0, top=high * 1.08 or 1)
    elif share and low >= 0 and high - low < MARGIN:
        middle = min(max((low + high) / 2, MARGIN / 2), 1 - MARGIN / 2)
        axes.set_ylim(middle - 0.55 * MARGIN, middle + 0.55 * MARGIN)
    by_epoch = all(line.by_epoch for line in lines)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=not across))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    if by_epoch:
        axes.set_xlim(left=0)
    axes.set_xlabel(across or ("epoch" if by_epoch else "step"), color=_INK, fontsize=9)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, labelsize=9, which="both")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)


def _tick(value: float, _: int) -> str:
    """12000 -> 12K, 0.00005 -> 5e-05, 0.25 -> 0.25."""
    if abs(value) >= 1000:
        return format_count(value).replace(".0", "")
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.4f}".rstrip("0").rstrip(".") or "0"


def _inline(svg: str, about: str) -> str:
    """The <svg> element alone, scalable, with the colors of the page and a label for screen readers."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view, "matplotlib wrote an SVG without a viewBox"
    name = escape(about, quote=True)
    body = re.sub(
        r"<svg[^>]*>", f'<svg viewBox="{view[1]}" role="img" aria-label="{name}">', body, count=1, flags=re.DOTALL
    )
    body = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", body)
    body = re.sub(r"(font-size: [\d.]+px)(?:; font-family: [^;\"]+)?", r"\1", body)
    for code, variable in _VARIABLES.items():
        body = body.replace(code, f"var({variable})")
    return re.sub(r"\n\s*", "\n", body)
