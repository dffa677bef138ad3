"""Bytes, counts, figures and seconds, as people write and read them."""

from __future__ import annotations

import math
from typing import Any


def format_bytes(num_bytes: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(num_bytes) < 1024 or unit == "TiB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    raise AssertionError("unreachable")


def format_count(number: float) -> str:
    """22_713_216 -> '22.7M'."""
    for unit in ("", "K", "M", "B"):
        if abs(number) < 1000 or unit == "B":
            return f"{number:.0f}" if unit == "" else f"{number:.1f}{unit}"
        number /= 1000
    raise AssertionError("unreachable")


def format_number(count: int, noun: str) -> str:
    """1, "epoch" -> '1 epoch'; 1200, "step" -> '1,200 steps'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_seconds(seconds: float) -> str:
    """75 -> '1m15s', 3675 -> '1h01m'."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def format_age(seconds: float) -> str:
    """90 -> '1m30s ago', 300_000 -> '3 days ago'."""
    if seconds < 60:
        return "just now"
    if seconds < 2 * 86_400:
        return f"{format_seconds(seconds)} ago"
    return f"{seconds / 86_400:.0f} days ago"


def format_figure(value: Any) -> str:
    """A number rounded for display: 0.8612, 1.20e-05, 12."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    value = value or 0  # not -0
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}" if abs(value) >= 10 else f"{value:g}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
