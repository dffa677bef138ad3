"""An inspection's report as one HTML file: no network, no script, readable without either."""

from __future__ import annotations

from pathlib import Path

from finetune.html_templates import open_templates
from finetune.inspection.characters import visible
from finetune.inspection.padding import describe_padding
from finetune.inspection.report import InspectionReport
from finetune.inspection.statistics import Histogram, bin_name

LISTED = 100  # rows of a finding


def render_page(report: InspectionReport) -> str:
    """The page. Everything that comes from the data is escaped, and its control and bidi characters are spelled out."""
    environment = open_templates(Path(__file__).parent)
    environment.filters["safe_text"] = visible
    environment.filters["token_text"] = lambda text: visible(text, line_feed="⏎\n")
    environment.filters["bars"] = draw_bars
    environment.filters["describe"] = describe_padding
    return environment.get_template("page.html.j2").render(report=report, listed=LISTED)


def draw_bars(drawn: Histogram) -> list[dict[str, str | float]]:
    """The bars of a histogram for an SVG of 600 x 160: x, y, width, height, and what each stands for."""
    most = max(max(drawn.counts), 1)
    wide = 600 / len(drawn.counts)
    bars: list[dict[str, str | float]] = []
    for index, count in enumerate(drawn.counts):
        low, high = drawn.edges[index], drawn.edges[index + 1]
        name = bin_name(low, high, whole=drawn.unit == "tokens")
        high_bar = 112 * count / most
        bars.append(
            {
                "x": round(index * wide + 2, 1),
                "y": round(130 - high_bar, 1),
                "width": round(wide - 4, 1),
                "height": round(max(high_bar, 1 if count else 0), 1),
                "middle": round((index + 0.5) * wide, 1),
                "tick": f"{low:,.0f}" if drawn.unit == "tokens" else f"{low:.3g}",
                "title": f"{name} {drawn.unit}: {count:,}",
                "count": f"{count:,}" if count else "",
            }
        )
    return bars
