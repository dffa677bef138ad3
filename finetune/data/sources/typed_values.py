"""Record batches of typed columns as rows of plain values, under the names of their columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from finetune.data.sources.arrow_values import holds_floats, is_plain, plain, python_values
from finetune.data.sources.class_columns import UNLABELED, class_columns, named_value
from finetune.data.values import without_nan


class TypedReader:
    """Rows with class names in place of class indices, and without NaN inside of lists and structs."""

    def __init__(self, schema: pa.Schema) -> None:
        self._names = class_columns(schema)
        self._odd = {field.name for field in schema if not is_plain(field.type)}
        self._floats = {field.name for field in schema if holds_floats(field.type)}

    def rows(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        """The rows of a batch; columns without a value are left out."""
        names = batch.schema.names
        columns = [self._values(name, batch.column(index)) for index, name in enumerate(names)]
        for values in zip(*columns, strict=True):
            yield {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def _values(self, name: str, column: pa.Array) -> list[Any]:
        values = python_values(column)
        if name in self._odd:
            values = list(map(plain, values))
        if name in self._floats:
            values = list(map(without_nan, values))
        if classes := self._names.get(name):
            values = [None if value == UNLABELED else named_value(value, classes) for value in values]
        return values


def field_types(schema: pa.Schema) -> dict[str, str]:
    """Column -> text, number, integer or truth; columns of other types are left out. Classes have names, which are text."""
    classes = class_columns(schema)
    found: dict[str, str] = {}
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if field.name in classes:
            found |= {field.name: "text"} if not pa.types.is_nested(kind) else {}
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            found[field.name] = "text"
        elif pa.types.is_boolean(kind):
            found[field.name] = "truth"
        elif pa.types.is_integer(kind) and kind != pa.uint64():
            found[field.name] = "integer"
        elif pa.types.is_floating(kind):
            found[field.name] = "number"
    return found


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are, or contain, bytes."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
