"""The columns of a table of answers: what records hold, and how an error is two columns of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.tasks.records import Fields

ERROR = "error"
ERROR_COLUMNS: Fields = {"error_kind": "text", "error_message": "text"}

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RecordColumns:
    """What records hold. fields: of recording.record_fields, "error" included. kept: names of kept columns, in order.

    kept_types: of those whose type is known; the others are text, and in it what is no text is JSON.
    """

    fields: Fields
    kept: Sequence[str] = ()
    kept_types: Mapping[str, str] = field(default_factory=dict)

    @property
    def reserved(self) -> list[str]:
        """Names that no kept column may have."""
        return [*self.fields, *ERROR_COLUMNS]

    @property
    def columns(self) -> Fields:
        """The columns of a table: the kept ones last, and the error in two."""
        answer = {name: kind for name, kind in self.fields.items() if name != ERROR}
        return {**answer, **ERROR_COLUMNS, **{name: self.kept_types.get(name, "json") for name in self.kept}}

    def cells(self, record: Record) -> dict[str, Any]:
        """The record under the names of `columns`; absent values are None."""
        error = record.get(ERROR) or {}
        flat = {**record, "error_kind": error.get("kind"), "error_message": error.get("message")}
        return {name: flat.get(name) for name in self.columns}


def as_text(value: Any) -> str | None:
    """A value of a column of text: text as it is, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
