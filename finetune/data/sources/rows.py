"""The rows of one source: text files and image folders, converted to JSON records in the cache, or rows in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from finetune.data.bad_rows import BadRow, BadRows
from finetune.data.columns import Required, apply_roles, check_required
from finetune.data.formats.compression import unreadable
from finetune.data.formats.lines import NumberedRow
from finetune.data.formats.parallel_text import parallel_files
from finetune.data.formats.registry import READ_OPTIONS, READERS
from finetune.data.image_values import files_digest, named_file, resolve_image
from finetune.data.prepare.cache import digest, publish
from finetune.data.prepare.records import RecordFile, RecordWriter
from finetune.data.sources.located import display_path
from finetune.data.values import OddValues, check_text, without_nan
from finetune.recipe.data import SourceSection

VERSION = 4  # of the layout on disk and of the rows that readers return for a file
WORDLESS = ("csv", "tsv")  # formats without a null, so that NA or nan in a cell may stand for one
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # json.dumps makes one for each row
PATH_ROLES = ("image",)  # text in these roles is a path, relative to the file that contains it


class Rows(Protocol):
    """Rows of one file or set, with roles as keys.

    fingerprint: identifies the content. classes: role -> class names, if the data declares them. bad: rows left out.
    odd: values that are read otherwise than they may be meant.
    """

    classes: Mapping[str, Sequence[str]]
    bad: BadRows
    odd: OddValues

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def values(self, role: str) -> Iterator[Any]: ...
    def place(self, index: int) -> str: ...
    def named_files(self) -> Iterator[str]: ...


class RecordRows:
    """Rows of a text file or an image folder, memory-mapped from JSON records in the cache. Pickles as paths."""

    def __init__(self, folder: Path, path: Path) -> None:
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        self.classes: Mapping[str, Sequence[str]] = {}
        listed = [(display_path(path) + suffix, reason) for suffix, reason in facts["bad"]]
        self.bad = BadRows("skip", listed, facts["bad_count"])
        self.odd = OddValues((kind, name, count, display_path(path) + at) for kind, name, count, at in facts["odd"])
        self._folder, self._path = folder, path
        self._records = RecordFile(folder)
        self._lines = self._records.numbers("line")
        self._names_files: bool = facts["names_files"]

    @cached_property
    def fingerprint(self) -> str:
        """Of the rows, and of size and modification time of the images that they name."""
        return digest("rows", self._folder.name, *([files_digest(self.named_files())] if self._names_files else []))

    def named_files(self) -> Iterator[str]:
        """Paths of the images that rows name, except in folders of images, whose listing is part of the fingerprint."""
        for role in PATH_ROLES if self._names_files else ():
            yield from filter(None, map(named_file, self.values(role)))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self._records[index].tobytes().decode("utf-8", "surrogatepass"))

    def values(self, role: str) -> Iterator[Any]:
        return (self[index].get(role) for index in range(len(self)))

    def place(self, index: int) -> str:
        line = int(self._lines[index])
        return f"{display_path(self._path)}:{line}" if line else display_path(self[index].get("image", self._path))

    def __reduce__(self) -> tuple[type[RecordRows], tuple[Path, Path]]:
        return RecordRows, (self._folder, self._path)


def convert_file(
    path: Path,
    file_format: str,
    source: SourceSection,
    mapping: Mapping[str, str],
    required: Required,
    limit: int | None,
) -> RecordRows:
    """The rows of a text file, converted or loaded from the cache.

    The cache entry is reused while the path, size, modification time, format, columns and limit are the same.
    file_format: a key of READERS. mapping: role -> column.
    Raises: UserError if the file cannot be read. Bad rows do not raise; they are listed in `bad` of the result.
    """
    files = list(parallel_files(path).values()) if file_format == "parallel" else [path]
    try:
        stats = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise unreadable(path, error) from error
    identity = (str(path.resolve()), stats, file_format, source.model_dump(include=set(READ_OPTIONS)))
    key = digest("file", VERSION, identity, dict(mapping), required, limit)
    read = partial(READERS[file_format], path, source)
    return RecordRows(
        publish(
            "rows",
            key,
            lambda folder: _write(folder, read(), mapping, required, limit, path.parent, words=file_format in WORDLESS),
        ),
        path,
    )


def convert_images(
    folder: Path,
    listing: Sequence[tuple[str, str | None, int, int]],
    mapping: Mapping[str, str],
    required: Required,
    limit: int | None,
) -> RecordRows:
    """The images of a folder. listing: (path relative to folder, class, bytes, modification time) of each, in order."""
    key = digest("images", VERSION, str(folder.resolve()), listing, dict(mapping), required, limit)
    rows: Iterator[NumberedRow] = ((0, {"image": name, "label": label}) for name, label, _, _ in listing)
    path = publish("rows", key, lambda new: _write(new, rows, mapping, required, limit, folder, known=True))
    return RecordRows(path, folder)


def _write(
    folder: Path,
    rows: Iterator[NumberedRow],
    mapping: Mapping[str, str],
    required: Required,
    limit: int | None,
    base: Path,
    *,
    words: bool = False,
    known: bool = False,
) -> None:
    """known: sizes and modification times of the files that rows name are part of the key of this entry."""
    bad, odd, names_files = BadRows("skip"), OddValues(), False
    with RecordWriter(folder, tags=("line",)) as writer:
        for line, raw in rows:
            try:
                if isinstance(raw, BadRow):
                    raise raw
                odd.look(raw, mapping.values(), f":{line}", words=words)
                row = _with_paths(apply_roles(raw, mapping), base)
                check_required(row, required, mapping)
                record = _record(row, mapping)
            except BadRow as error:
                bad.add(f":{line}" if line else "" if isinstance(raw, BadRow) else f"/{raw['image']}", str(error))
                continue
            names_files = names_files or (not known and any(named_file(row.get(role)) for role in PATH_ROLES))
            writer.append(record, line)
            if writer.count == limit:
                break
    facts = {"bad": bad.listed, "bad_count": bad.count, "odd": odd.to_list(), "names_files": names_files}
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def _record(row: dict[str, Any], mapping: Mapping[str, str]) -> bytes:
    """The row as JSON; NaN inside of lists and mappings becomes null. Raises: BadRow for text that is no text.

    In columns that the task does not read, and in names of files, halves of surrogate pairs stay as they are.
    """
    try:
        return ENCODER.encode(row).encode("utf-8")
    except ValueError:  # NaN, or half of a surrogate pair: rare, so only such rows are looked through
        for role, column in mapping.items():
            if role not in PATH_ROLES:
                check_text(row.get(role), column)
        return json.dumps(without_nan(row), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _with_paths(row: dict[str, Any], base: Path) -> dict[str, Any]:
    for role in PATH_ROLES:
        if row.get(role) is not None:
            row[role] = resolve_image(row[role], base)
    return row


class MemoryTable:
    """A table of rows in memory, for prediction on a few inputs and for tests. Row i is located at "<name> row i"."""

    def __init__(self, name: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> None:
        self.name, self._rows = name, list(rows)
        self.columns: Mapping[str, str] = columns or {role: role for row in self._rows for role in row}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._rows[index]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._rows)

    def place(self, index: int) -> str:
        return f"{self.name} row {index}"
