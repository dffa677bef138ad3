"""Entities in sequences of IOB tags: spans, and counts of correct, predicted and reference entities by type.

A tag is O, or a prefix B, I, E, S, L or U, a dash and the entity type ("B-person"). Invalid sequences are read as by
conlleval of the CoNLL shared tasks and by seqeval in default mode: an I without a preceding B starts an entity. A
lowercase o and the digit 0 among named tags are slips of the pen for O, never entities. Tags that are all numbers have no
entities: which of them is O is unknown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

Span = tuple[str, int, int]  # entity type, index of the first word, index after the last word
OUTSIDE = ("O", "o", "0")
NAMELESS = re.compile(r"-?[0-9]+|LABEL_[0-9]+")
_SINGLE, _LAST = ("S", "U"), ("E", "L")  # prefixes of one-word entities and of last words


def are_nameless(tags: Iterable[str]) -> bool:
    """Whether tags are numbers, or generated names such as LABEL_3, so that nobody can say which of them are entities."""
    return all(NAMELESS.fullmatch(tag) for tag in tags)


def entity_spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a tag sequence: ["B-per", "I-per", "O", "I-loc"] -> [("per", 0, 2), ("loc", 3, 4)]."""
    spans: list[Span] = []
    entity, start, ended = "", 0, True  # the current entity; none while `ended`
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-") if tag not in OUTSIDE else ("O", "", "")
        if prefix not in ("B", "I", "E", "L", "S", "U", "O"):
            prefix, name = "I", tag  # without prefixes, runs of the same tag are entities
        begins = prefix in ("B", *_SINGLE) or name != entity or ended
        if not ended and (prefix == "O" or begins):
            spans.append((entity, start, index))
            ended = True
        if prefix == "O":
            continue
        if begins:
            entity, start, ended = name, index, False
        if prefix in (*_SINGLE, *_LAST):
            spans.append((entity, start, index + 1))
            ended = True
    return spans


@dataclass
class EntityCounts:
    """Counts by entity type. correct: entities predicted exactly; predicted, references: all entities."""

    correct: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    references: Counter[str] = field(default_factory=Counter)

    @property
    def entities(self) -> list[str]:
        """The entity types that occur, A to Z."""
        return sorted(set(self.predicted) | set(self.references))

    def figures(self, entity: str | None = None) -> tuple[float, float, float]:
        """(precision, recall, F1) of one entity type, or of all together (micro); 0 where the divisor is 0."""
        correct, predicted, references = (
            counter.total() if entity is None else counter[entity]
            for counter in (self.correct, self.predicted, self.references)
        )
        return (
            correct / predicted if predicted else 0.0,
            correct / references if references else 0.0,
            2 * correct / (predicted + references) if predicted + references else 0.0,
        )


def count_entities(tags: np.ndarray, references: np.ndarray, labels: Sequence[str] | None) -> EntityCounts | None:
    """Count entities. tags, references: [examples], each a list of tags or of their indices in `labels`.

    None if there are no examples, or if the tags have no names (see are_nameless).
    Raises: ValueError for sentences whose tags and references differ in number, and for indices without `labels`.
    """
    pairs = [
        (_names(predicted, labels), _names(reference, labels))
        for predicted, reference in zip(tags, references, strict=True)
    ]
    occurring = labels if labels is not None else {tag for pair in pairs for side in pair for tag in side}
    if not pairs or are_nameless(occurring):
        return None
    counts = EntityCounts()
    for index, (predicted_tags, reference_tags) in enumerate(pairs):
        if len(predicted_tags) != len(reference_tags):
            raise ValueError(f"example {index} has {len(predicted_tags)} tags, but {len(reference_tags)} references")
        predicted, expected = set(entity_spans(predicted_tags)), set(entity_spans(reference_tags))
        counts.predicted.update(entity for entity, _, _ in predicted)
        counts.references.update(entity for entity, _, _ in expected)
        counts.correct.update(entity for entity, _, _ in predicted & expected)
    return counts


def entity_figure(index: int, tags: np.ndarray, references: np.ndarray, labels: Sequence[str] | None) -> float | None:
    """Precision (index 0), recall (1) or F1 (2) of all entities together; None where count_entities is."""
    counts = count_entities(tags, references, labels)
    return None if counts is None else counts.figures()[index]


def _names(tags: Sequence[int | str], labels: Sequence[str] | None) -> list[str]:
    if labels is None and not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f'the tags {list(tags)[:5]} are numbers: give their names, labels=["O", "B-PER", ...]')
    return [tag if isinstance(tag, str) else (labels or [])[int(tag)] for tag in tags]
