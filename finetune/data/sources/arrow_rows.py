"""Rows of typed columns (Parquet, Arrow, the hub, built-in datasets): memory-mapped Arrow files, read in place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRows
from finetune.data.columns import Required
from finetune.data.formats.compression import unreadable
from finetune.data.image_values import named_file
from finetune.data.prepare.cache import digest, publish
from finetune.data.prepare.content_digests import joint_digest
from finetune.data.prepare.file_digest import contents_digest, file_digest, source_digest
from finetune.data.sources.arrow_values import column_at, holds_times, is_plain, plain, python_value, python_values
from finetune.data.values import NO_NUMBER, NO_TIME, NUMBER, TEXT_ROLES, OddValues, without_nan
from finetune.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BATCH_ROWS = 256  # rows per record batch when converting; small enough for batches of photographs
UNLABELED = -1  # the class index of rows without a label


ClassNames = Sequence[str] | Mapping[str, Any]  # of a column; of the keys of its structs


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
        self.classes: Mapping[str, Sequence[str]] = _declared_classes(
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
        return digest("arrow", files, mapping, required, limit, source_digest("data"), self.content, paths)

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
                role in TEXT_ROLES
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


def holds_floats(kind: pa.DataType) -> bool:
    """Whether values of a type are, or contain, floating-point numbers."""
    import pyarrow as pa

    if pa.types.is_floating(kind):
        return True
    return any(holds_floats(kind.field(index).type) for index in range(kind.num_fields))


def named_value(value: Any, names: ClassNames) -> Any:
    """The name of a class index, or of each index in a list or under a key; any other value is returned as it is."""
    if isinstance(value, list):
        return [named_value(item, names) for item in value]
    if isinstance(names, Mapping):
        if not isinstance(value, dict):
            return value
        return {key: named_value(item, names[key]) if key in names else item for key, item in value.items()}
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


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


def _declared_classes(columns: Mapping[str, ClassNames]) -> dict[str, Sequence[str]]:
    """{"label": names}, and {"objects.category": names} for the keys of structs."""
    declared: dict[str, Sequence[str]] = {}
    for role, names in columns.items():
        if isinstance(names, Mapping):
            declared.update({f"{role}.{key}": inner for key, inner in _declared_classes(names).items()})
        else:
            declared[role] = names
    return declared


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


def map_arrow(paths: Sequence[Path]) -> pa.Table:
    """Memory-map Arrow IPC files or streams as one table; its columns stay in the page cache of the system.

    Raises: UserError for a file that is neither an IPC file nor a stream.
    """
    import pyarrow as pa

    tables = []
    for path in paths:
        try:
            source = pa.memory_map(str(path), "r")
            try:
                tables.append(pa.ipc.open_file(source).read_all())
            except pa.ArrowInvalid:
                source.seek(0)
                tables.append(pa.ipc.open_stream(source).read_all())
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from error
        check_names(tables[-1].schema, path)
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)


def check_arrow(path: Path) -> None:
    """Check every offset, length and text of an Arrow file that others wrote, once per content: reading values behind a
    wrong offset would end the process, or show memory that is none of the file's.

    Raises: UserError for a damaged file.
    """
    import pyarrow as pa

    def write(folder: Path) -> None:
        try:
            map_arrow([path]).validate(full=True)
        except pa.ArrowException as error:
            raise unreadable(path, error) from error

    publish("checked", digest("arrow", file_digest(path)), write, about=f"checked: {path}")


def write_arrow(folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches to `rows.arrow` in a folder."""
    import pyarrow as pa

    with (folder / "rows.arrow").open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def parquet_schema(path: Path) -> tuple[pa.Schema, int]:
    """(schema, number of rows) from the footer of a Parquet file. Raises: UserError if it is not a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    check_names(schema, path)
    return schema, count


def check_names(schema: pa.Schema | pa.DataType, path: Path, inside: str = "") -> None:
    """Raises: UserError if two columns, or two fields of a struct, have the same name: one of them would be meant."""
    import pyarrow as pa

    fields = [
        schema.field(index) for index in range(len(schema) if isinstance(schema, pa.Schema) else schema.num_fields)
    ]
    if isinstance(schema, pa.Schema) or pa.types.is_struct(schema):
        names = Counter(field.name for field in fields)
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice is not None:
            raise UserError(
                f"two {f'fields of {inside}' if inside else 'columns'} are named {twice!r}",
                where=str(path),
                remedy="Rename one of them.",
            )
    for field in fields:
        if field.type.num_fields:
            check_names(field.type, path, field.name)


def parquet_to_arrow(path: Path) -> Path:
    """The path of an Arrow file in the cache with the rows of a Parquet file, which has no random access to rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, _ = parquet_schema(path)
    key = digest("parquet", file_digest(path))

    def write(folder: Path) -> None:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            batches = file.iter_batches(BATCH_ROWS, use_threads=False)
            write_arrow(folder, schema, _readable(path, batches, pa.ArrowException))

    return publish("tables", key, write, about=str(path)) / "rows.arrow"


def _readable(path: Path, batches: Iterator[pa.RecordBatch], broken: type[Exception]) -> Iterator[pa.RecordBatch]:
    """The batches, with read errors reported as errors of the source file at `path`, not of the cache."""
    while True:
        try:
            batch = next(batches)
            batch.validate(full=True)  # texts of others may hold bytes that are no text
        except StopIteration:
            return
        except (OSError, broken) as error:
            raise unreadable(path, error) from error
        yield batch


def cache_table(kind: str, key: str, make: Callable[[], pa.Table]) -> Path:
    """The Arrow file in the cache with the table that `make` returns. `make` is called if the entry does not exist."""

    def write(folder: Path) -> None:
        table = make()
        write_arrow(folder, table.schema, table.to_batches(max_chunksize=BATCH_ROWS))

    return publish("tables", digest(kind, key), write, about=f"{kind}: {key}") / "rows.arrow"


def file_fingerprint(paths: Sequence[Path]) -> str:
    """Fingerprint of files: their contents."""
    return digest("files", contents_digest(paths))
