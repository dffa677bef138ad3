"""How a run was trained over time: its sessions on a timeline, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.tracking.series import Series
from finetune.units import format_count, format_seconds

Curves = Mapping[tuple[str, str], Series]


@dataclass(frozen=True)
class Session:
    """left, width: percent of the time from the first start to the last end. text: what happened in it."""

    left: float
    width: float
    status: str
    text: str


def timeline(facts: Mapping[str, Any], now: float) -> list[Session]:
    """One entry per start; [] for a run of one session that ended by itself, of which there is nothing to tell."""
    sessions = [one for one in facts.get("sessions", []) if isinstance(one.get("started"), (int, float))]
    if len(sessions) < 2 and not any(one.get("status") in ("stopped", "failed") for one in sessions):
        return []
    ends = [_end(sessions, index, now) for index in range(len(sessions))]
    first, whole = sessions[0]["started"], max(max(ends) - sessions[0]["started"], 1e-9)
    return [
        Session(
            left=round(100 * (one["started"] - first) / whole, 2),
            width=round(max(0.5, 100 * (end - one["started"]) / whole), 2),
            status=str(one.get("status", "")),
            text=_told(number, one, end),
        )
        for number, (one, end) in enumerate(zip(sessions, ends, strict=True), start=1)
    ]


def _end(sessions: list[Any], index: int, now: float) -> float:
    """When a session ended; of one that was killed nobody knows more than that the next one started later."""
    ended = sessions[index].get("ended")
    if isinstance(ended, (int, float)):
        return float(ended)
    return float(sessions[index + 1]["started"] if index + 1 < len(sessions) else now)


def _told(number: int, session: Mapping[str, Any], end: float) -> str:
    steps = f"from step {session.get('start_step', 0):,}"
    if session.get("step") is not None:
        steps += f" to {session['step']:,}"
    killed = session.get("status") == "running" and not session.get("ended")
    how = "killed or still running" if killed else str(session.get("status", ""))
    return f"start {number}: {steps}, {format_seconds(end - session['started'])}, {how}"


def costs(facts: Mapping[str, Any], curves: Curves, seconds: float | None) -> list[tuple[str, str]]:
    """(what, how much): processor or GPU time, units, throughput of each rank. Energy is not measured."""
    details, rows = facts.get("facts", {}), []
    ranks, unit = details.get("ranks"), details.get("unit", "unit")
    if seconds and ranks:
        device = "GPU" if str(details.get("device", "")).startswith("cuda") else "rank"
        rows.append((f"{device} hours", f"{ranks * seconds / 3600:,.2f} ({ranks} x {format_seconds(seconds)})"))
    rate = curves.get(("train", "units_per_second"))
    if rate is not None:
        median = float(np.median(rate.values))
        rows.append((f"{unit}s per second", f"{format_count(median)} ({format_count(median / (ranks or 1))} per rank)"))
    padding = curves.get(("train", "padding_share"))
    if padding is not None:
        rows.append(("padding", f"{float(np.mean(padding.values)):.1%} of what was computed"))
    idle = _idle(curves)
    if idle is not None:
        rows.append(("not computing", f"{idle:.1%} of a step: communication, waiting for ranks, for data"))
    memory = curves.get(("train", "memory_bytes"))
    if memory is not None:
        rows.append(("memory of rank 0", f"{float(memory.values.max()) / 2**30:.2f} GiB at most"))
    return rows


def _idle(curves: Curves) -> float | None:
    whole, busy = curves.get(("train", "step_seconds")), curves.get(("train", "compute_seconds"))
    if whole is None or busy is None:
        return None
    _, one, other = np.intersect1d(busy.steps, whole.steps, return_indices=True)
    total = float(whole.values[other].sum())
    return 1 - float(busy.values[one].sum()) / total if total else None
