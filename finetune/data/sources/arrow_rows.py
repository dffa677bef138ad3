"""Rows of typed columns (Parquet, Arrow, the hub, built-in datasets): memory-mapped Arrow files, read in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRows
from finetune.data.columns import Required
from finetune.data.image_values import named_file
from finetune.data.prepare.cache import digest
from finetune.data.prepare.content_digests import joint_digest
from finetune.data.prepare.file_digest import ROW_CODE, source_digest
from finetune.data.sources.arrow_files import map_arrow
from finetune.data.sources.arrow_values import (
    column_at,
    holds_floats,
    holds_times,
    is_plain,
    plain,
    python_value,
    python_values,
)
from finetune.data.sources.class_columns import UNLABELED, class_columns, declared_classes, named_value
from finetune.data.values import NO_NUMBER, NO_TIME, NUMBER, OddValues, without_nan
from finetune.recipe.roles import TEXTS

if TYPE_CHECKING:
    import numpy as np


class ArrowRows:
    """Rows of memory-mapped Arrow files, with roles as keys. Class indices become class names. Pickles as paths.

    name: display name, used in the locations of rows. mapping: role -> column. fingerprint: identifies the files.
    limit: maximum number of rows; None: all. bad: the rows that lack a required role, which are left out.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        mapping: Mapping[str, str],
        required: Required,
        limit: int | None,
        fingerprint: str,
    ) -> None:
        self._arguments = (tuple(paths), name, dict(mapping), required, limit, fingerprint)
        self._name = name
        table = map_arrow(paths)
        class_names = class_columns(table.schema)
        self._columns = {role: (column_at(table, column), class_names.get(column)) for role, column in mapping.items()}
        for column in table.column_names:
            if column not in self._columns and column not in mapping.values():
                self._columns[column] = (table.column(column), class_names.get(column))
        self.classes: Mapping[str, Sequence[str]] = declared_classes(
            {role: names for role, (_, names) in self._columns.items() if names}
        )
        self._with_floats = {role for role, (column, _) in self._columns.items() if holds_floats(column.type)}
        self._odd_types = {role for role, (column, _) in self._columns.items() if not is_plain(column.type)}
        self.bad, self.odd = BadRows("skip"), self._odd_values(mapping)
        self._index = self._complete_rows(table.num_rows, mapping, required, limit)
        self._length = table.num_rows if self._index is None else len(self._index)
        if limit is not None:
            self._length = min(self._length, limit)

    @cached_property
    def fingerprint(self) -> str:
        """Of the files, how they are read, and of the paths and contents of the images that they name."""
        _, _, mapping, required, limit, files = self._arguments
        paths = digest(list(self.named_files()))
        return digest("arrow", files, mapping, required, limit, source_digest(*ROW_CODE), self.content, paths)

    @cached_property
    def content(self) -> str:
        """Of the files, and of the images that they name."""
        *_, limit, files = self._arguments
        return digest("content", files, limit, joint_digest(self.named_files()))

    def named_files(self) -> Iterator[str]:
        """The paths in the image column, where it holds paths; bytes are not read."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if "image" not in self._columns:
            return
        column, kind = self._columns["image"][0], self._columns["image"][0].type
        if pa.types.is_struct(kind):
            names = {kind.field(index).name for index in range(kind.num_fields)}
            if "path" not in names:
                return
            paths = pc.struct_field(column, "path")
            column = paths.filter(pc.is_null(pc.struct_field(column, "bytes"))) if "bytes" in names else paths
            kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield from filter(None, (named_file(value.as_py()) for value in column))

    def _complete_rows(
        self, count: int, mapping: Mapping[str, str], required: Required, limit: int | None
    ) -> np.ndarray | None:
        """Indices of the rows with every required role, int64; None if all have. Adds the other rows to `bad`."""
        import numpy as np

        complete = np.ones(count, bool)
        for roles in required:
            present = np.zeros(count, bool)
            for role in roles:
                if role in self._columns:
                    present |= self._present(role)
            columns = " or ".join(mapping.get(role, role) for role in roles)
            for row in np.flatnonzero(~present & complete):
                lost = any(self._holds_lost_time(role, int(row)) for role in roles)
                reason = "a time that Python does not have" if lost else "no value"
                self.bad.add(f"{self._name} row {row}", f"{reason} in column {columns}")
            complete &= present
        if complete.all():
            return None
        return np.flatnonzero(complete)[:limit]

    def _holds_lost_time(self, role: str, row: int) -> bool:
        column = self._columns[role][0] if role in self._columns else None
        return column is not None and holds_times(column.type) and bool(column[row].is_valid)

    def _odd_values(self, mapping: Mapping[str, str]) -> OddValues:
        """NaN, infinity and times that Python does not have in the columns of roles, and numbers in those of texts."""
        import pyarrow as pa
        import pyarrow.compute as pc

        odd = OddValues()
        for role, name in mapping.items():
            column, classes = self._columns[role]
            found = {}
            if pa.types.is_floating(column.type):
                found[NO_NUMBER] = pc.invert(pc.is_finite(column))
            if (
                role in TEXTS
                and not classes
                and (pa.types.is_floating(column.type) or pa.types.is_integer(column.type))
            ):
                found[NUMBER] = pc.is_finite(column)
            for kind, mask in found.items():
                rows = pc.indices_nonzero(pc.fill_null(mask, False))
                if len(rows):
                    odd.add(kind, name, f"{self._name} row {rows[0].as_py()}", len(rows))
            if holds_times(column.type):
                lost = [
                    row for row, value in enumerate(python_values(column)) if value is None and column[row].is_valid
                ]
                if lost:
                    odd.add(NO_TIME, name, f"{self._name} row {lost[0]}", len(lost))
        return odd

    def _value(self, role: str, row: int) -> Any:
        """The value of a role in a row of the files; None for null, NaN, and the index of a row without a class."""
        column, names = self._columns[role]
        value = python_value(column[row])
        if role in self._odd_types:
            value = plain(value)
        if role in self._with_floats:
            value = without_nan(value)
        if names:
            return None if value == UNLABELED else named_value(value, names)
        return value

    def _present(self, role: str) -> np.ndarray:
        """Which rows have a value in a role, bool [rows]."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column, names = self._columns[role]
        present = pc.is_valid(column)
        if pa.types.is_floating(column.type):
            present = pc.fill_null(pc.is_finite(column), False)
        if holds_times(column.type):
            present = pa.chunked_array([[value is not None for value in python_values(column)]], pa.bool_())
        if names and pa.types.is_integer(column.type):
            present = pc.and_(present, pc.fill_null(pc.not_equal(column, UNLABELED), False))
        return present.to_numpy()

    @property
    def name(self) -> str:
        """The file or set, for people."""
        return self._name

    def __len__(self) -> int:
        return self._length

    def _row(self, index: int) -> int:
        return index if self._index is None else int(self._index[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._row(index)
        values = {role: self._value(role, row) for role in self._columns}
        return {role: value for role, value in values.items() if value is not None}

    def values(self, role: str) -> Iterator[Any]:
        """The values of one role, None where a row has none; other columns are not read."""
        if role not in self._columns:
            yield from (None for _ in range(len(self)))
            return
        for index in range(len(self)):
            yield self._value(role, self._row(index))

    def place(self, index: int) -> str:
        return f"{self._name} row {self._row(index)}"

    def __reduce__(self) -> tuple[type[ArrowRows], tuple[Any, ...]]:
        return ArrowRows, self._arguments
