"""The figures of an inspection: lengths and their distribution, shares, labels per split and source, scripts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from finetune.inspection.checks.classes import class_counts
from finetune.inspection.split import InspectedSplit

BINS = 12
MAX_LABELS = 40  # classes listed per table
MAX_SOURCES = 20


@dataclass(frozen=True)
class Histogram:
    """counts[i] values lie in [edges[i], edges[i + 1]); the last bin includes its end. unit: "tokens"."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    unit: str


@dataclass(frozen=True)
class Table:
    """hidden: rows that are not listed."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    hidden: int = 0


def histogram(values: np.ndarray, unit: str) -> Histogram | None:
    """At most 12 bins of round width; None without values."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu":
        step = float(_round_up((high - low + 1) / BINS))
        start = low // step * step
        count = int((high - start) // step) + 1
    else:
        step, start, count = (high - low) / BINS or 1.0, low, BINS if high > low else 1
    edges = start + step * np.arange(count + 1)
    counts, _ = np.histogram(values, edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), unit)


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if factor * size >= value:
                return factor * size
        size *= 10


def length_table(splits: dict[str, InspectedSplit]) -> Table:
    """One line per split: examples, tokens, learned, cut, left out."""
    head = ("split", "rows", "examples", "mean", "median", "95%", "longest", "learned", "cut", "left out")
    rows = []
    for name, split in splits.items():
        tokens = split.tokens
        lengths = tokens.lengths if tokens is not None else np.zeros(0)
        out = split.left_out_count + split.refused_count
        cells = [name, f"{len(split.table) + split.refused_count:,}", f"{len(split.row_ids):,}"]
        if len(lengths):
            quantiles = np.percentile(lengths, (50, 95, 100))
            cells += [f"{lengths.mean():,.0f}", *(f"{value:,.0f}" for value in quantiles)]
        else:
            cells += ["-"] * 4
        total = int(lengths.sum())
        learned = (
            f"{int(tokens.learned.sum()) / total:.1%}" if tokens is not None and tokens.supervises and total else "-"
        )
        cells += [learned, _cut_share(split), f"{out:,}"]
        rows.append(tuple(cells))
    known = [column for column in range(len(head)) if any(row[column] != "-" for row in rows)]
    lines = [tuple(line[column] for column in known) for line in (head, *rows)]
    return Table(lines[0], tuple(lines[1:]))


def _cut_share(split: InspectedSplit) -> str:
    """Share of the examples that were cut; estimated where only a part of those at the limit was looked at."""
    if split.tokens is None or not len(split.row_ids):
        return "-"
    cut = len({one.position for one in split.cuts})
    if split.cuts_of < len(split.tokens.at_limit):
        return f"~{cut / split.cuts_of * len(split.tokens.at_limit) / len(split.row_ids):.1%}" if split.cuts_of else "-"
    return f"{cut / len(split.row_ids):.1%}"


def label_table(splits: dict[str, InspectedSplit], *, of_rows: bool = False) -> Table | None:
    """Classes by frequency in train, with their count and share in each split; None for tasks without classes.

    of_rows: rows have any number of classes: shares are of rows, and those without a class are counted, too.
    """
    counts = {name: class_counts(split) for name, split in splits.items() if split.labels}
    if not counts:
        return None
    total: Counter[str] = sum(counts.values(), Counter())
    names = [name for name, _ in (counts.get("train") or total).most_common()]
    names += [name for name in total if name not in names]
    totals = {name: len(splits[name].labels) if of_rows else found.total() for name, found in counts.items()}
    rows = [
        (label, *(_share(found[label], totals[name]) for name, found in counts.items())) for label in names[:MAX_LABELS]
    ]
    if of_rows:
        without = {name: sum(not labels for labels in splits[name].labels) for name in counts}
        rows.append(("(no label)", *(_share(without[name], totals[name]) for name in counts)))
    head = "label (% of rows)" if of_rows else "label"
    return Table((head, *counts), tuple(rows), max(0, len(names) - MAX_LABELS))


def source_table(splits: dict[str, InspectedSplit]) -> Table:
    """Rows of each source in each split, with its most frequent labels."""
    rows: list[tuple[str, ...]] = []
    for name, split in splits.items():
        sizes = np.bincount(split.contents.source_of, minlength=len(split.contents.sources))
        labels: dict[int, Counter[str]] = {}
        for row, names in zip(split.labeled, split.labels, strict=True):
            labels.setdefault(int(split.contents.source_of[row]), Counter()).update(names)
        for index, source in enumerate(split.contents.sources):
            frequent = labels.get(index, Counter())
            shown = ", ".join(f"{label} {count:,}" for label, count in frequent.most_common(4))
            more = f", {len(frequent) - 4} more" if len(frequent) > 4 else ""
            rows.append((name, source, f"{int(sizes[index]):,}", shown + more))
    head: tuple[str, ...] = ("split", "source", "rows", "labels")
    if not any(row[3] for row in rows):
        head, rows = head[:3], [row[:3] for row in rows]
    return Table(head, tuple(rows[:MAX_SOURCES]), max(0, len(rows) - MAX_SOURCES))


def script_table(splits: dict[str, InspectedSplit]) -> Table | None:
    """Share of each script and kind of character in each split; None without texts."""
    found = {name: split.contents.counter.scripts() for name, split in splits.items()}
    found = {name: scripts for name, scripts in found.items() if scripts}
    if not found:
        return None
    names = list(dict.fromkeys(script for scripts in found.values() for script in scripts))
    totals = {name: sum(scripts.values()) for name, scripts in found.items()}
    rows = [(script, *(_share(found[name].get(script, 0), totals[name]) for name in found)) for script in names]
    return Table(("characters", *found), tuple(rows[:MAX_LABELS]), max(0, len(rows) - MAX_LABELS))


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else "0"


def bin_name(low: float, high: float, *, whole: bool) -> str:
    """The values of a bin: "40-59", "7", "0.5 to 0.75"."""
    if not whole:
        return f"{low:.3g} to {high:.3g}"
    return f"{low:,.0f}" if high - low <= 1 else f"{low:,.0f}-{high - 1:,.0f}"
