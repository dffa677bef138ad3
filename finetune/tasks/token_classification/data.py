"""Rows of token classification as examples, and words as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row, Table
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.inputs import resolve_on_long
from finetune.tasks.text.limits import limit_of
from finetune.tasks.text.words import WordEncoder

OUTSIDE = "O"
SHOWN_WORDS = 60


def encode_rows(artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
    """Words as token ids, and with targets their tags; see WordEncoder."""
    options, classes = artifacts.options, artifacts.classes
    assert classes is not None
    encoder = WordEncoder(
        artifacts.processor,
        classes.lookup,
        classes.names,
        limit=limit_of(artifacts),
        on_long=resolve_on_long(options.on_long, with_targets=with_targets),
        label_on=options.label_on,
    )
    return encoder.encode(rows, with_targets=with_targets)


def training_texts(table: Table) -> Iterator[str]:
    """Texts for a tokenizer that is trained on them."""
    for row in table:
        yield " ".join(map(str, row["tokens"]))


def input_words(artifacts: TaskArtifacts, ids: Sequence[int], firsts: Sequence[int]) -> list[str]:
    """The words as the model saw them: the text from one first token to the next. ids: the tokens of an example."""
    tokenizer = artifacts.processor
    begins = [first for first in firsts if first >= 0]
    ends = dict(zip(begins, [*begins[1:], len(ids)], strict=True))
    special = set(tokenizer.all_special_ids)
    return [
        tokenizer.decode([token for token in ids[first : ends[first]] if token not in special]).strip()
        if first >= 0
        else "..."
        for first in firsts
    ]


def tagged_text(words: Sequence[str], tags: Sequence[int], names: Sequence[str]) -> str:
    """Words followed by their tags, O left out: "stayed on Redondo/B-location Beach/I-location"."""
    tagged = [
        word if names[tag] == OUTSIDE else f"{word}/{names[tag]}"
        for word, tag in zip(words[:SHOWN_WORDS], tags, strict=False)
    ]
    return " ".join(tagged) + (" ..." if len(words) > SHOWN_WORDS else "")
