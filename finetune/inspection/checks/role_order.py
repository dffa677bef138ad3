"""role-order: conversations whose turns are out of order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection, report_rows
from finetune.inspection.left_out import speakers
from finetune.inspection.split import InspectedSplit

COLUMNS = ("messages", "prompt", "chosen", "rejected", "completion")


def check(inspection: Inspection) -> list[Finding]:
    """A system turn that is not the first, a beginning that is not the user's, two turns of one speaker in a row, an end
    that is not the assistant's.
    """
    are_prompts = "chosen" in inspection.task.card.rows.columns  # its messages come before the replies
    faults: dict[tuple[str, int], str] = {}
    for name, split in inspection.splits.items():
        for role in COLUMNS:
            if role in split.table.columns:
                for row, fault in _faults(split, role, "prompt" if are_prompts and role == "messages" else role):
                    faults.setdefault((name, row), fault)
    return report_rows(
        "role-order",
        "warn",
        "conversations have turns out of order",
        [(inspection.splits[name], row) for name, row in faults],
        lambda split, row: faults[split.name, row],
    )


def _faults(split: InspectedSplit, role: str, kind: str) -> Iterator[tuple[int, str]]:
    """(row id, fault) of the conversations under a role. kind: the role whose rules they follow."""
    values = getattr(split.table, "values", None)
    column = values(role) if values is not None else (row.get(role) for row in split.table)
    for row, value in enumerate(column):
        is_conversation = isinstance(value, (list, tuple)) or (isinstance(value, str) and value.lstrip()[:2] == "[{")
        if is_conversation and (fault := order_fault(speakers(value), kind)):
            yield row, fault


def order_fault(turns: Sequence[str], role: str = "messages") -> str:
    """What is wrong with the order of a conversation's speakers; "" if nothing. role: the column that holds it."""
    if not turns:
        return ""
    spoken = [turn for turn in turns if turn != "system"]
    if "system" in turns[1:]:
        return f"turn {turns.index('system', 1) + 1} is a system turn, which should come first"
    whole = role == "messages" or (role in ("chosen", "rejected") and len(turns) > 1)
    if (whole or role == "prompt") and spoken and spoken[0] != "user":
        return f"the first turn is the {_owner(spoken[0])}, not the user's"
    for place, (before, turn) in enumerate(itertools.pairwise(turns), 2):
        if turn == before and turn in ("user", "assistant"):
            return f"turns {place - 1} and {place} are both the {_owner(turn)}"
        if turn == "tool" and before not in ("assistant", "tool"):
            return f"turn {place} is a tool result, but no call of the assistant precedes it"
    if whole and "assistant" in turns and turns[-1] != "assistant":
        return f"the last turn is the {_owner(turns[-1])}: it is not learned"
    return ""


def _owner(speaker: str) -> str:
    return f"{speaker}'s"
