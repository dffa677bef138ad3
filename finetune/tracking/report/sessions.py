"""How a run was trained over time: its sessions on a timeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.units import format_seconds


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
