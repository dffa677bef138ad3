"""What a run was trained on: lengths of the examples, balance of the classes, and data that changed while it trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.tracking.report.charts import Line, draw_chart
from finetune.tracking.report.curves import Chart
from finetune.tracking.series import Series

MAX_SHOWN = 20  # classes
MOST, LEAST = 14, 5  # of more classes: the most and the least frequent ones
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Balance:
    """splits: names. rows: (class, one (count, share of the split) for each split). note: how uneven, and what is left out."""

    splits: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    note: str


def draw_lengths(facts: Mapping[str, Any]) -> Chart | None:
    """The share of each split's examples over their lengths; None where that was not recorded, or all are equally long."""
    found = _mapping(_mapping(facts.get("facts")).get("lengths"))
    edges, counts = found.get("edges"), _mapping(found.get("counts"))
    if not isinstance(edges, list) or len(edges) < 2:
        return None
    edges = np.asarray(edges, np.float64)
    middles = (edges[:-1] + edges[1:] - 1) / 2
    lines = []
    for split in SPLITS:
        values = np.asarray(counts.get(split) or (), np.float64)
        if len(values) == len(middles) and values.sum():
            lines.append(Line(split, Series(middles, middles, values / values.sum()), exact=True))
    drawing = draw_chart("Lengths", lines, zero=True, across="tokens")
    return Chart("Lengths", drawing, "fraction of the examples by length") if drawing else None


def class_balance(facts: Mapping[str, Any]) -> Balance | None:
    """How often each class occurs; None for tasks without classes, and where it was not recorded."""
    found = _mapping(_mapping(facts.get("facts")).get("class_balance"))
    counts = {split: _mapping(one) for split, one in _mapping(found.get("counts")).items() if split in SPLITS}
    counts = {split: counts[split] for split in SPLITS if counts.get(split)}
    if not counts:
        return None
    first = next(iter(counts.values()))
    names = sorted(first, key=lambda name: -first[name])
    shown = names if len(names) <= MAX_SHOWN else [*names[:MOST], *names[-LEAST:]]
    totals = {split: max(1, sum(one.values())) for split, one in counts.items()}
    rows = tuple(
        (name, tuple((int(one.get(name, 0)), one.get(name, 0) / totals[split]) for split, one in counts.items()))
        for name in shown
    )
    classes = max(int(found.get("classes") or 0), len(names))
    parts = [f"{classes:,} classes"] + (
        [f"the {MOST} largest and {LEAST} small ones are shown"] if shown != names else []
    )
    most, least = first[names[0]], first[names[-1]]
    if classes == len(names) and len(names) > 1:
        parts.append(
            f"the largest has {most / least:.3g} times as many as the smallest" if least else f"{names[-1]} has none"
        )
    return Balance(tuple(counts), rows, "; ".join(parts))


def data_changes(facts: Mapping[str, Any]) -> list[str]:
    """One sentence for each resume on other data (--data-changed), which makes the figures before and after incomparable."""
    found = []
    for one in facts.get("data_changes") or ():
        if isinstance(one, Mapping):
            where = f"resumed at step {one['step']:,}" if isinstance(one.get("step"), int) else "resumed"
            what = one.get("changes") or one.get("what") or one.get("splits") or ""
            listed = "; ".join(map(str, what)) if isinstance(what, (list, tuple)) else str(what)
            found.append(f"{where} on other data than before (--data-changed)" + (f": {listed}" if listed else ""))
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
