"""Metrics: local `evaluate` modules, one file each; nothing is downloaded.

Importing this package is cheap. `evaluate` (2 to 5 seconds) is imported when the first MetricSet computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.metrics.catalogue import NAMES, direction

if TYPE_CHECKING:
    from finetune.metrics.metric_set import MetricSet, Results

__all__ = ["NAMES", "MetricSet", "Results", "direction"]


def __getattr__(name: str) -> Any:
    """Import MetricSet and Results on first access, because they need NumPy."""
    if name in ("MetricSet", "Results"):
        from finetune.metrics import metric_set

        return getattr(metric_set, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
