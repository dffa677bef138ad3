"""The metrics of rows that say what their answer should be: from the lines that grew beside the output."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from finetune.metrics import MetricSet
from finetune.metrics.catalogue import find
from finetune.units import format_figure

TOGETHER = 1_024  # rows added to the metrics at once

Fields = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """scalars: the loss per unit, where there is one, and metric -> number. rows: that were scored.

    left_out: metrics that need what answers of a prediction do not have.
    """

    scalars: dict[str, float]
    rows: int
    left_out: Sequence[str] = ()


def measure_scored(path: Path, metrics: Sequence[str], options: Mapping[str, Any]) -> Measured:
    """The metrics over all lines of a file, each {"row", "values": of the answer, "score": {"loss", "weight", "reference"}}.

    metrics: names of the catalogue. options: Task.metric_options. The file is read once, line by line.
    """
    lines = _read(path)
    head = list(islice(lines, TOGETHER))
    if not head:
        return Measured({}, 0)
    known = set.intersection(*(set(fields) for fields in head))
    usable = [name for name in metrics if set(find(name).fields) <= known]
    found = MetricSet(usable, **options)
    loss, weight, rows = 0.0, 0, 0
    everything = chain(head, lines)
    while batch := list(islice(everything, TOGETHER)):
        found.add(batch)
        loss = math.fsum([loss, *(fields["loss"] for fields in batch)])
        weight += sum(fields["weight"] for fields in batch)
        rows += len(batch)
    scalars = {"loss": loss / weight} if weight else {}
    left_out = [name for name in metrics if name not in usable]
    return Measured({**scalars, **found.compute().scalars}, rows, left_out)


def describe_measured(measured: Measured, total: int) -> list[str]:
    """Lines for people. total: rows that were asked."""
    if not measured.rows:
        return []
    figures = ", ".join(f"{name} {format_figure(value)}" for name, value in measured.scalars.items())
    count = f"{measured.rows:,} rows" if measured.rows == total else f"{measured.rows:,} of {total:,} rows"
    lines = [f"{count} say what their answer should be: {figures}"]
    if measured.left_out:
        lines.append(f"not computed, as answers lack what they need: {', '.join(measured.left_out)}")
    return lines


def _read(path: Path) -> Iterator[Fields]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            score = line["score"]
            yield {**line["values"], **score["reference"], "loss": score["loss"], "weight": score["weight"]}
