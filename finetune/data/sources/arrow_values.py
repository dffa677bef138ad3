"""Columns of Arrow tables by dotted names, and their values as plain ones: what JSON has, and bytes."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def column_at(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column; of translation.en the field en of the struct column translation, null where the struct is."""
    import pyarrow.compute as pc

    if name in table.column_names:
        return table.column(name)
    first, *inner = name.split(".")
    return pc.struct_field(table.column(first), inner)


def is_plain(kind: pa.DataType) -> bool:
    """Whether values of a type need no `plain`: they are text, bytes, numbers, booleans, or lists and structs of them."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return is_plain(kind.value_type)
    if pa.types.is_map(kind) or pa.types.is_decimal(kind) or pa.types.is_temporal(kind):
        return False
    if not kind.num_fields:
        return not isinstance(kind, pa.BaseExtensionType)
    return all(is_plain(kind.field(index).type) for index in range(kind.num_fields))


def python_value(scalar: pa.Scalar) -> Any:
    """The value of a cell as Python has it; None for one that it does not have, such as a time beyond the year 9999."""
    try:
        return scalar.as_py()
    except (OverflowError, ValueError, LookupError):
        return None


def python_values(column: pa.Array) -> list[Any]:
    """`python_value` of every cell."""
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError, LookupError):
        return list(map(python_value, column))


def holds_times(kind: pa.DataType) -> bool:
    """Whether values of a type are, or contain, dates, times or durations, which Python may not have."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return holds_times(kind.value_type)
    return pa.types.is_temporal(kind) or any(holds_times(kind.field(index).type) for index in range(kind.num_fields))


def plain(value: Any) -> Any:
    """A value of `as_py` as JSON has it: decimals are numbers, dates and times are ISO text, maps are mappings."""
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        return value
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):  # a map
            return {str(plain(name)): plain(item) for name, item in value}
        return [plain(item) for item in value]
    return str(value)


def holds_floats(kind: pa.DataType) -> bool:
    """Whether values of a type are, or contain, floating-point numbers."""
    import pyarrow as pa

    if pa.types.is_floating(kind):
        return True
    return any(holds_floats(kind.field(index).type) for index in range(kind.num_fields))
