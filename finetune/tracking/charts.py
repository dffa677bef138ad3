"""Curves as inline SVG whose colors are CSS variables, so that the page controls light and dark mode."""

from __future__ import annotations

import io
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


@dataclass(frozen=True)
class Line:
    """One curve. points: draw each value with a marker (for few values, such as evaluations). exact: never smoothed."""

    label: str
    series: Series
    points: bool = False
    exact: bool = False
    by_epoch: bool = False


def draw_chart(title: str, lines: Sequence[Line], *, unit: str = "", zero: bool = False) -> str:
    """An <svg> element with the lines over steps (or epochs); "" if there are no values.

    zero: the axis starts at 0. Positive values that mostly span more than a factor of 100 get a logarithmic axis.
    """
    lines = [line for line in lines if len(line.series)]
    if not lines:
        return ""
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for index, line in enumerate(lines):
            _draw(axes, line, _SERIES[index % len(_SERIES)])
        _format_axes(axes, lines, zero)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    about = f"{title}: {', '.join(line.label for line in lines)}" + (f", in {unit}" if unit else "")
    return _inline(buffer.getvalue(), about)


def _draw(axes: Axes, line: Line, color: str) -> None:
    series = line.series
    if line.points:
        across = series.epochs if line.by_epoch else series.steps
        marker = "o" if len(series) <= 60 else ""
        axes.plot(across, series.values, color=color, marker=marker, markersize=4.5, linewidth=1.8, label=line.label)
        return
    few = thin(series)
    if not line.exact and len(few.mean) >= 80:
        axes.fill_between(few.steps, few.low, few.high, color=color, alpha=0.18, linewidth=0)
        if len(series) == len(few.mean):
            axes.plot(few.steps, few.mean, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(few.steps, smooth(few.mean), color=color, linewidth=1.9, label=line.label)
    else:
        marker = "o" if len(few.mean) == 1 else ""
        axes.plot(few.steps, few.mean, color=color, linewidth=1.9, marker=marker, label=line.label)


def _format_axes(axes: Axes, lines: Sequence[Line], zero: bool) -> None:
    values = np.concatenate([line.series.values for line in lines])
    low, high = float(values.min()), float(values.max())
    if low > 0 and not zero and np.quantile(values, 0.98) / np.quantile(values, 0.02) > 100:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    elif zero and low >= 0:
        axes.set_ylim(bottom=0, top=high * 1.08 or 1)
    by_epoch = all(line.by_epoch for line in lines)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    if by_epoch:
        axes.set_xlim(left=0)
    axes.set_xlabel("epoch" if by_epoch else "step", color=_INK, fontsize=9)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, labelsize=9, which="both")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    if len(lines) > 1:
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=_INK, handlelength=1.4, loc="best")
        legend.set_in_layout(False)


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
