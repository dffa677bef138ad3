"""Rows of text classification as examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.inputs import encode_each, resolve_on_long, text_and_pair, tokenize_texts
from finetune.tasks.text.limits import limit_of


def encode_rows(artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
    """{"input_ids", "token_type_ids" if the model takes them, and with targets "label"} per row, or a BadRow.

    label: the index of the class; a list of indices where the options say that a text has several.
    """
    options, classes = artifacts.options, artifacts.classes
    assert classes is not None
    read_label = classes.lookup.indices if options.problem == "multi_label" else classes.lookup.index
    labels: list[Any] = [None] * len(rows)
    if with_targets:
        labels = encode_each(rows, lambda row: read_label(row.get("label")))
    texts = encode_each(rows, text_and_pair)
    usable = [label if isinstance(label, BadRow) else text for label, text in zip(labels, texts, strict=True)]
    on_long = resolve_on_long(options.on_long, with_targets=with_targets)
    limit = limit_of(artifacts)
    encoded = tokenize_texts(artifacts.processor, usable, limit, on_long)
    if not with_targets:
        return list(encoded)
    return [
        tokens if isinstance(tokens, BadRow) else {**tokens, "label": label}
        for tokens, label in zip(encoded, labels, strict=True)
    ]
