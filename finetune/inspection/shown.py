"""The rows that a report shows: the first, random ones, the longest, or one by its id; as tokens or as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.inspection.inspection import Inspection
from finetune.inspection.left_out import without_limits
from finetune.inspection.pictures import Picture, make_picture
from finetune.inspection.pieces import (
    CONTINUED,
    SPECIAL,
    TEMPLATE,
    group_turns,
    shared_length,
    token_roles,
    token_texts,
    written_roles,
)
from finetune.inspection.sequences import TokenSequence, token_sequences
from finetune.inspection.split import InspectedSplit

MAX_TOKENS = 3000  # of a sequence, shown
CUT_TOKENS = 200  # of what was cut, shown


@dataclass(frozen=True)
class Token:
    """text: what it adds. role: who says it. tag: its label, "" without."""

    id: int
    text: str
    role: str
    learned: bool
    tag: str = ""

    @property
    def added(self) -> bool:
        """Whether the tokenizer or a template adds it."""
        return self.role in (SPECIAL, TEMPLATE)


@dataclass(frozen=True)
class ShownSequence:
    """tokens: the first 3,000; `hidden` more are not shown. cut: text that the limit cut off, and its tokens."""

    name: str
    tokens: tuple[Token, ...]
    learned: int
    length: int
    hidden: int = 0
    cut_text: str = ""
    cut_tokens: int = 0

    @property
    def turns(self) -> list[tuple[str, tuple[Token, ...]]]:
        """(speaker, tokens) of each turn."""
        roles, texts = [token.role for token in self.tokens], [token.text for token in self.tokens]
        grouped = group_turns(roles, texts, [token.learned for token in self.tokens])
        return [(speaker, self.tokens[start:end]) for speaker, start, end in grouped]


@dataclass(frozen=True)
class ShownRow:
    """why: "first", "random", "longest" or "asked for". problem: why the row has no example, "" if it has one."""

    split: str
    id: int
    place: str
    why: str
    sequences: tuple[ShownSequence, ...] = ()
    labels: tuple[str, ...] = ()
    picture: Picture | None = None
    problem: str = ""


def choose_rows(split: InspectedSplit, count: int, seed: int) -> list[tuple[int, str]]:
    """(position of an example, why it is shown): `count` first, random and longest ones, each example once."""
    total = len(split.row_ids)
    lengths = split.tokens.lengths if split.tokens is not None else np.asarray(split.examples.costs)
    random = np.random.default_rng(seed).permutation(total)[: 3 * count].tolist()
    chosen: dict[int, str] = {}
    for why, positions in (
        ("first", range(min(count, total))),
        ("random", random),
        ("longest", np.argsort(-lengths, kind="stable")[: 3 * count].tolist() if split.tokens is not None else ()),
    ):
        taken = [position for position in positions if position not in chosen][:count]
        chosen |= dict.fromkeys(taken, why)
    return list(chosen.items())


def show_rows(
    inspection: Inspection, split: InspectedSplit, *, count: int, row: int | None, seed: int
) -> list[ShownRow]:
    """The rows of a report. row: only this one. Raises: UserError for a row that is not there."""
    if row is None:
        return [_show(inspection, split, position, why) for position, why in choose_rows(split, count, seed)]
    if not 0 <= row < len(split.table):
        raise UserError(
            f"{split.name} has no row {row}",
            where="--row",
            remedy=f"Rows of {split.name} have the ids 0 to {len(split.table) - 1}.",
        )
    positions = np.flatnonzero(split.row_ids == row).tolist()
    if positions:
        return [_show(inspection, split, position, "asked for") for position in positions]
    known = {one.id: one.reason for one in split.left_out}
    problem = known.get(row)
    if problem is None:
        encoded = inspection.task.encode(inspection.artifacts, [split.table[row]], with_targets=True)[0]
        problem = str(encoded) if isinstance(encoded, BadRow) else "left out while the data was prepared"
    return [ShownRow(split.name, row, split.table.place(row), "asked for", problem=problem)]


def _show(inspection: Inspection, split: InspectedSplit, position: int, why: str) -> ShownRow:
    task, artifacts = inspection.task, inspection.artifacts
    example, row_id = split.examples[position], int(split.row_ids[position])
    sequences = token_sequences(task, artifacts, example)
    cuts = (
        {}
        if split.tokens is None or hasattr(split.examples, "split_count")
        else _cut_texts(inspection, split, position)
    )
    row = split.table[row_id]
    if (default := getattr(artifacts.options, "system", "")) and not row.get("system"):
        row = {**row, "system": default}
    shown = tuple(_show_sequence(artifacts.processor, one, row, *cuts.get(one.name, ("", 0))) for one in sequences)
    augment = getattr(artifacts.options, "augment", "none") if split.name == "train" else "none"
    picture = make_picture(artifacts, example, augment=augment) if "pixel_values" in example else None
    labels: Sequence[str] = ()
    if split.tokens is None:
        labels = picture.labels if picture is not None else ()
    elif split.tokens.labels is not None and not any(one.tags for one in sequences):
        labels = split.tokens.labels[position] or ["(no label)"]
    elif split.tokens.numbers is not None:
        labels = [f"{split.tokens.numbers[position]:g}"]
    return ShownRow(split.name, row_id, split.table.place(row_id), why, shown, tuple(labels), picture)


def _cut_texts(inspection: Inspection, split: InspectedSplit, position: int) -> dict[str, tuple[str, int]]:
    """Sequence -> (text that was cut, its tokens). What an encoder closes a text with ([SEP]) is kept, and stands behind it."""
    task, artifacts = inspection.task, inspection.artifacts
    assert split.tokens is not None
    if position not in split.tokens.at_limit:
        return {}
    rows = [split.table[int(split.row_ids[position])]]
    encoded = task.encode(without_limits(artifacts), rows, with_targets=True)[0]
    if isinstance(encoded, BadRow):
        return {}
    found = {}
    kept = token_sequences(task, artifacts, split.examples[position])
    for short, whole in zip(kept, token_sequences(task, artifacts, encoded), strict=True):
        cut = len(whole.ids) - len(short.ids)
        if cut > 0:
            start = shared_length(short.ids.tolist(), whole.ids.tolist())
            texts = token_texts(artifacts.processor, whole.ids[: min(start + cut, start + CUT_TOKENS)].tolist())
            found[short.name] = ("".join(text for text in texts[start:] if text != CONTINUED), cut)
    return found


def _show_sequence(tokenizer: Any, sequence: TokenSequence, row: Any, cut_text: str, cut_tokens: int) -> ShownSequence:
    ids = sequence.ids[:MAX_TOKENS].tolist()
    texts = token_texts(tokenizer, ids)
    roles = token_roles(tokenizer, ids, texts, row, sequence.name)
    if sequence.generated:
        roles = written_roles(roles, sequence.runs)
    tags = sequence.tags or [""] * len(ids)
    tokens = tuple(
        Token(index, text, role, bool(learned), tag)
        for index, text, role, learned, tag in zip(ids, texts, roles, sequence.learned, tags, strict=False)
    )
    length = len(sequence.ids)
    return ShownSequence(
        sequence.name, tokens, int(sequence.learned.sum()), length, length - len(ids), cut_text, cut_tokens
    )
