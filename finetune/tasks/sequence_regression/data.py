"""Rows of sequence regression as examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.inputs import encode_each, resolve_on_long, text_and_pair, tokenize_texts


def encode_rows(artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
    """{"input_ids", "token_type_ids" if the model takes them, and with targets "label"} per row, or a BadRow."""
    numbers: list[Any] = [None] * len(rows)
    if with_targets:
        numbers = encode_each(rows, lambda row: read_number(row.get("label")))
    texts = encode_each(rows, text_and_pair)
    usable = [number if isinstance(number, BadRow) else text for number, text in zip(numbers, texts, strict=True)]
    on_long = resolve_on_long(artifacts.options.on_long, with_targets=with_targets)
    limit = artifacts.settings["max_length"]
    encoded = tokenize_texts(artifacts.processor, usable, limit, on_long)
    if not with_targets:
        return list(encoded)
    return [
        tokens if isinstance(tokens, BadRow) else {**tokens, "label": number}
        for tokens, number in zip(encoded, numbers, strict=True)
    ]


def read_number(value: Any) -> float:
    """A label as a finite number. Raises: BadRow."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"label {value!r} is not a number")
    return number
