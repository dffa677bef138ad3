"""Class names that `datasets` writes into the schema of Arrow and Parquet files, and values with names in place of indices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


UNLABELED = -1  # the class index of rows without a label
ClassNames = Sequence[str] | Mapping[str, Any]  # of a column; of the keys of its structs


def class_columns(schema: pa.Schema) -> dict[str, ClassNames]:
    """{column: class names, or {key: class names} of its structs}, from the metadata that `datasets` writes into the schema
    of Arrow and Parquet files.
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    found = {column: _class_names(feature) for column, feature in features.items()}
    return {column: names for column, names in found.items() if names}


def _class_names(feature: Any) -> ClassNames:
    """Of one feature: its class names, those of the keys of its structs, or [] if it has none."""
    while isinstance(feature, dict) and "feature" in feature and ("_type" in feature or len(feature) == 1):
        feature = feature["feature"]  # a list of classes
    if isinstance(feature, list) and len(feature) == 1:  # a list, as older versions write it
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return []
    if isinstance(feature.get("names"), list) and feature.get("_type", "ClassLabel") == "ClassLabel":
        return [str(name) for name in feature["names"]]
    inner = {key: _class_names(item) for key, item in feature.items() if isinstance(item, (dict, list))}
    return {key: names for key, names in inner.items() if names}


def named_value(value: Any, names: ClassNames) -> Any:
    """The name of a class index, or of each index in a list or under a key; any other value is returned as it is."""
    if isinstance(value, list):
        return [named_value(item, names) for item in value]
    if isinstance(names, Mapping):
        if not isinstance(value, dict):
            return value
        return {key: named_value(item, names[key]) if key in names else item for key, item in value.items()}
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def declared_classes(columns: Mapping[str, ClassNames]) -> dict[str, Sequence[str]]:
    """{"label": names}, and {"objects.category": names} for the keys of structs."""
    declared: dict[str, Sequence[str]] = {}
    for role, names in columns.items():
        if isinstance(names, Mapping):
            declared.update({f"{role}.{key}": inner for key, inner in declared_classes(names).items()})
        else:
            declared[role] = names
    return declared
