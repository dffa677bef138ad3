"""What users read of tagged words: each word with its tag, and the entities with their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.metrics.spans import OUTSIDE, are_nameless, entity_spans
from finetune.tasks.records import Fields, figure

ENTITY: Fields = {"entity": "text", "score": "number", "start": "integer", "end": "integer", "text": "text"}


def tag_fields(names: Sequence[str]) -> Fields:
    """See tag_record. names: of the tags. There are entities where one tag is O; parts of speech have none."""
    fields: Fields = {"words": ["text"], "tags": ["text"], "scores": ["number"]}
    return {**fields, "entities": [ENTITY]} if _name_entities(names) else fields


def tag_record(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """{"words": ["Ann", "left"], "tags": ["B-per", "O"], "scores": [0.99, 0.98], "entities": [{"entity": "per", ...}]}.

    A word that the model did not see (cut off) has null as tag and score. An entity has the mean score of its words, and
    start and end (after its last) in characters of a plain text; in words where the row is a list of words.
    values: tags, tag_scores, words, and offsets and text of a plain text. Raises: BadRow for scores that are not finite.
    """
    words, offsets = values["words"], values.get("offsets")
    scores = [None if score is None else figure(score) for score in values["tag_scores"]]
    tags = [None if score is None else names[tag] for tag, score in zip(values["tags"], scores, strict=True)]
    record: dict[str, Any] = {"words": words, "tags": tags, "scores": scores}
    if not _name_entities(names):
        return record
    entities = record["entities"] = []
    for entity, first, behind in entity_spans([tag or OUTSIDE[0] for tag in tags]):
        inside = [score for score in scores[first:behind] if score is not None]
        start, end = (first, behind) if offsets is None else (offsets[first][0], offsets[behind - 1][1])
        text = " ".join(words[first:behind]) if offsets is None else values["text"][start:end]
        score = figure(sum(inside) / len(inside))
        entities.append({"entity": entity, "score": score, "start": start, "end": end, "text": text})
    return record


def _name_entities(names: Sequence[str]) -> bool:
    return any(name in OUTSIDE for name in names) and not are_nameless(names)
