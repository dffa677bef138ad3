"""Rows that do not become examples, and why; and what the limit on tokens cuts from those that do.

Both are found by encoding rows once more with `Task.encode`: as the recipe says, and with limits that nothing reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from finetune.data.bad_rows import BadRow
from finetune.data.images import decode_image
from finetune.data.table import Row, Table
from finetune.inspection.contents import has_blank
from finetune.inspection.sequences import TokenSequence, token_sequences
from finetune.inspection.tokens import length_limits
from finetune.tasks.artifacts import TaskArtifacts

UNREACHED = 1 << 30  # tokens
Cause = Literal["empty", "length", "unlearned", "image", "boxes", "dropped", "other"]
CHECKED = 2000  # rows encoded once more, at most, to find a cause or what was cut
_CHUNK = 256


@dataclass(frozen=True)
class LeftOut:
    """A row without an example. reason: what the encoder says."""

    id: int
    place: str
    cause: Cause
    reason: str


@dataclass(frozen=True)
class Cut:
    """What the limit cut from an example. position: in the split's examples. kept, whole: tokens of the sequence.

    lost: how many of the tokens that were cut would have been learned. ends: whether the last token of the whole text is
    learned behind the cut.
    """

    position: int
    name: str
    kept: int
    whole: int
    lost: int
    ends: bool = False


def without_limits(artifacts: TaskArtifacts) -> TaskArtifacts:
    """The artifacts with limits on tokens that no text reaches."""
    limits = length_limits(artifacts)
    settings = {**artifacts.settings, **{key: UNREACHED for key in limits if key in artifacts.settings}}
    in_options = {key: UNREACHED for key in limits if key not in artifacts.settings}
    return replace(artifacts, settings=settings, options=artifacts.options.model_copy(update=in_options))


def find_left_out(task: Any, artifacts: TaskArtifacts, table: Table, used: np.ndarray) -> tuple[list[LeftOut], int]:
    """(rows without an example, how many there are in all): the cause is found for the first 2,000 of them.

    used: ids of rows that have an example.
    """
    mask = np.ones(len(table), bool)
    mask[used] = False
    missing = np.flatnonzero(mask).tolist()
    found = []
    for first in range(0, min(len(missing), CHECKED), _CHUNK):
        ids = missing[first : min(first + _CHUNK, CHECKED)]
        rows = [table[index] for index in ids]
        for index, row, encoded in zip(ids, rows, task.encode(artifacts, rows, with_targets=True), strict=True):
            found.append(_explain(task, artifacts, index, table.place(index), row, encoded))
    return found, len(missing)


def _explain(task: Any, artifacts: TaskArtifacts, index: int, place: str, row: Row, encoded: Any) -> LeftOut:
    if isinstance(encoded, BadRow):
        return LeftOut(index, place, _cause(task, artifacts, row), str(encoded))
    if "input_ids" in encoded and not len(encoded["input_ids"]):
        return LeftOut(index, place, "dropped", "longer than the limit: left out (options.on_long: drop)")
    return LeftOut(index, place, "other", "left out while the data was prepared")


def _cause(task: Any, artifacts: TaskArtifacts, row: Row) -> Cause:
    """The first that applies."""
    if image := task.card.rows.image_role:
        try:
            decode_image(row.get(image), artifacts.options.value_range)
        except BadRow:
            return "image"
        return "boxes" if "objects" in task.card.rows.columns else "other"
    if length_limits(artifacts) and not isinstance(_again(task, without_limits(artifacts), row), BadRow):
        return "length"
    if has_blank(row, tuple(task.card.rows.columns)):
        return "empty"
    spoken = speakers(row["messages"]) if "messages" in row else []
    if spoken and "assistant" not in spoken:
        return "unlearned"
    options = artifacts.options
    if getattr(options, "train_on", "") == "reply":
        whole = replace(artifacts, options=options.model_copy(update={"train_on": "all"}))
        if not isinstance(_again(task, whole, row), BadRow):
            return "unlearned"
    return "other"


def _again(task: Any, artifacts: TaskArtifacts, row: Row) -> Any:
    return task.encode(artifacts, [row], with_targets=True)[0]


def speakers(messages: Any) -> list[str]:
    """The roles of a conversation's turns, in the words of chat templates; [] if it is none that can be read."""
    from finetune.tasks.text.conversations import read_turns

    try:
        return [str(turn["role"]) for turn in read_turns(messages).messages]
    except BadRow:
        return []


def find_cuts(
    task: Any,
    artifacts: TaskArtifacts,
    table: Table,
    positions: Sequence[int],
    row_ids: np.ndarray,
    examples: Any,
) -> list[Cut]:
    """What was cut from the examples at `positions`, which are as long as their limit."""
    endless, cuts = without_limits(artifacts), []
    for first in range(0, len(positions), _CHUNK):
        chunk = positions[first : first + _CHUNK]
        rows = [table[int(row_ids[position])] for position in chunk]
        for position, whole in zip(chunk, task.encode(endless, rows, with_targets=True), strict=True):
            if isinstance(whole, BadRow):
                continue
            kept = token_sequences(task, artifacts, examples[position])
            for short, long in zip(kept, token_sequences(task, artifacts, whole), strict=True):
                if len(long.ids) > len(short.ids):
                    lost = int(long.learned.sum()) - int(short.learned.sum())
                    cuts.append(Cut(position, short.name, len(short.ids), len(long.ids), lost, _ends(short, long)))
    return cuts


def _ends(short: TokenSequence, long: TokenSequence) -> bool:
    learned = len(short.ids) and short.learned[-1] and long.learned[-1]
    return bool(learned and short.ids[-1] == long.ids[-1])
