"""Metrics: local `evaluate` modules, one file each, asked of no hub.

Importing this room is cheap. `evaluate` (2 to 5 seconds of CPU) is imported when the first MetricSet computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.metrics.catalogue import NAMES, direction

if TYPE_CHECKING:
    from finetune.metrics.metric_set import MetricSet, Results

__all__ = ["NAMES", "MetricSet", "Results", "direction"]


def __getattr__(name: str) -> Any:
    """MetricSet and Results need numpy: imported when they are asked for."""
    if name in ("MetricSet", "Results"):
        from finetune.metrics import metric_set

        return getattr(metric_set, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
