"""Whether rounding explains that a layout differs: the same division of the examples over ranks, computed in float64.

Where a gradient is not continuous (at the kink of a ReLU, between two pixels that a detector samples, at ties of a selection),
a rounding may change it by any amount. What float32 does to the plain loop then says little about what it does to a layout.
The exact numbers do: in float64, a correct layout agrees with the plain loop, and a wrong one differs as before. An engine that
computes in float32 alone (DeepSpeed) must then agree with DistributedDataParallel in float32, over the same division.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Figures = dict[str, Any]  # one variant's, as workers/verify.py writes them
TWINS = "twin-*.json"
SHRINKS = 100  # float64 rounds 5e8 times finer; the losses themselves are computed in float32, though


@dataclass(frozen=True)
class Twin:
    """DistributedDataParallel over the division of some layouts, in both precisions. layouts: their names. refused: why it
    could not be computed, "" if it could.
    """

    layouts: tuple[str, ...]
    float32: Figures
    float64: Figures

    @property
    def refused(self) -> str:
        return str(self.float32["refused"] or self.float64["refused"])


def read_twins(folder: Path) -> list[Twin]:
    """What the ranks computed of the layouts that differ."""
    values = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(TWINS))]
    return [Twin(tuple(value["layouts"]), value["float32"], value["float64"]) for value in values]


def limits(floor: Sequence[float], tolerance: float) -> list[float]:
    """How much a layout may differ in float64. floor: what float32 does to the plain loop, place by place."""
    return [max(tolerance, size / SHRINKS) for size in floor]


def beyond(measured: Sequence[tuple[float, str]], allowed: Sequence[float]) -> list[tuple[str, float]]:
    """(place, limit) where a difference is more than is allowed there, or not a number."""
    return [(where, limit) for (size, where), limit in zip(measured, allowed, strict=False) if not size <= limit]


def twin_of(name: str, twins: Sequence[Twin]) -> Twin | None:
    """The twin of a layout; None if there is none, or if it could not be computed."""
    return next((twin for twin in twins if name in twin.layouts and not twin.refused), None)


def settings_of(differing: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the ranks read: the settings, and which layouts to compute again."""
    return {**settings, "differing": list(differing)}
