"""Rows of sequence regression as examples."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.data.values import to_number
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.inputs import encode_each, resolve_on_long, text_and_pair, tokenize_texts
from finetune.tasks.text.limits import limit_of

DECIMAL_COMMA = re.compile(r"\s*[-+]?[\d. ]*\d,\d+\s*")
LARGEST = 1e18  # of a label: the loss squares the difference from it
FAR = 20  # of the numbers' mean or standard deviation from 0, where a new head begins


def encode_rows(artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
    """{"input_ids", "token_type_ids" if the model takes them, and with targets "label"} per row, or a BadRow."""
    numbers: list[Any] = [None] * len(rows)
    if with_targets:
        numbers = encode_each(rows, lambda row: read_number(row.get("label")))
    texts = encode_each(rows, text_and_pair)
    usable = [number if isinstance(number, BadRow) else text for number, text in zip(numbers, texts, strict=True)]
    on_long = resolve_on_long(artifacts.options.on_long, with_targets=with_targets)
    limit = limit_of(artifacts)
    encoded = tokenize_texts(artifacts.processor, usable, limit, on_long)
    if not with_targets:
        return list(encoded)
    return [
        tokens if isinstance(tokens, BadRow) else {**tokens, "label": number}
        for tokens, number in zip(encoded, numbers, strict=True)
    ]


def read_number(value: Any) -> float:
    """A label as a number whose square float32 can hold. Raises: BadRow."""
    if isinstance(value, (list, tuple)):
        raise BadRow(
            f"label is a list of {len(value)} values, but one number is learned: write each to a column of its own, and train "
            "a model for each"
        )
    try:
        number = to_number(value)
    except (TypeError, ValueError):
        number = math.nan
    except OverflowError:
        raise BadRow("label is an integer beyond float64; scale the numbers") from None
    if not math.isfinite(number):
        comma = isinstance(value, str) and DECIMAL_COMMA.fullmatch(value)
        raise BadRow(f"label {value!r} is not a number{': write its decimal comma as a point' if comma else ''}")
    if abs(number) > LARGEST:
        raise BadRow(f"label {number:g} is too large: its square is beyond float32; scale the numbers")
    return number


def describe_targets(values: Iterable[Any], column: str) -> str:
    """What hinders learning these numbers: that all are equal, or far from 0; "" for others. Other values are left out."""
    numbers = np.fromiter(_usable(values), np.float64)
    if not len(numbers):
        return ""
    low, high, mean, deviation = numbers.min(), numbers.max(), numbers.mean(), numbers.std()
    if low == high and len(numbers) > 1:
        return f"all {len(numbers):,} numbers in {column} are {low:g}: there is nothing to learn"
    if max(abs(mean), deviation) < FAR:
        return ""
    return (
        f"the numbers in {column} are far from 0 (mean {mean:.3g}, standard deviation {deviation:.3g}), where a new head "
        "begins; it may not get there: train on (number - mean) / deviation, and undo that in the answers"
    )


def _usable(values: Iterable[Any]) -> Iterator[float]:
    for value in values:
        with suppress(BadRow):
            yield read_number(value)
