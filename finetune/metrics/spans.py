"""Entities in tagged words: spans read off IOB tags, and counts of those found, missed and made up, by entity.

Tags: O, or a prefix B, I, E, S, L or U, a dash and the entity ("B-person"). Reading them is as forgiving as the CoNLL
shared task's conlleval, whose figures seqeval gives by default: an I without a B before it begins an entity too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Span = tuple[str, int, int]  # entity, first word, word behind the last
_ALONE, _LAST = ("S", "U"), ("E", "L")


def entity_spans(tags: Sequence[str]) -> list[Span]:
    """["B-per", "I-per", "O", "I-loc"] -> [("per", 0, 2), ("loc", 3, 4)]."""
    spans: list[Span] = []
    entity, start, ended = "", 0, True  # the entity that is open: none while `ended`
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-") if tag != "O" else ("O", "", "")
        if prefix not in ("B", "I", "E", "L", "S", "U", "O"):
            prefix, name = "I", tag  # a tag without a prefix: runs of the same tag are entities
        begins = prefix in ("B", *_ALONE) or name != entity or ended
        if not ended and (prefix == "O" or begins):
            spans.append((entity, start, index))
            ended = True
        if prefix == "O":
            continue
        if begins:
            entity, start, ended = name, index, False
        if prefix in (*_ALONE, *_LAST):
            spans.append((entity, start, index + 1))
            ended = True
    return spans


@dataclass
class EntityCounts:
    """found: entities of the reference predicted exactly; predicted, references: all of them; each by entity."""

    found: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    references: Counter[str] = field(default_factory=Counter)

    @property
    def entities(self) -> list[str]:
        """Those that occur, A to Z."""
        return sorted(set(self.predicted) | set(self.references))

    def figures(self, entity: str | None = None) -> tuple[float, float, float]:
        """(precision, recall, F1) of one entity, or of all together (micro); 0 where there is nothing to divide by."""
        found, predicted, references = (
            counter.total() if entity is None else counter[entity]
            for counter in (self.found, self.predicted, self.references)
        )
        return (
            found / predicted if predicted else 0.0,
            found / references if references else 0.0,
            2 * found / (predicted + references) if predicted + references else 0.0,
        )


def count_entities(tags: np.ndarray, references: np.ndarray, labels: Sequence[str] | None) -> EntityCounts:
    """tags, references: [examples], each a list of tags, or of their indices in `labels`."""
    counts = EntityCounts()
    for predicted, wanted in zip(tags, references, strict=True):
        one, other = set(entity_spans(_names(predicted, labels))), set(entity_spans(_names(wanted, labels)))
        counts.predicted.update(entity for entity, _, _ in one)
        counts.references.update(entity for entity, _, _ in other)
        counts.found.update(entity for entity, _, _ in one & other)
    return counts


def _names(tags: Sequence[int | str], labels: Sequence[str] | None) -> list[str]:
    return [tag if isinstance(tag, str) else (labels or [])[int(tag)] for tag in tags]
