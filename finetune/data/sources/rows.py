"""The rows of one source: text files and image folders, converted to JSON records in the cache, or rows in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from finetune.data.bad_rows import BadRow, BadRows
from finetune.data.columns import Required
from finetune.data.formats.compression import unreadable
from finetune.data.formats.lines import NumberedRow, describe_number
from finetune.data.formats.registry import READ_OPTIONS, READERS, files_of
from finetune.data.image_values import named_file
from finetune.data.prepare.cache import digest, publish
from finetune.data.prepare.content_digests import content_digests, joint_digest
from finetune.data.prepare.file_digest import ROW_CODE, contents_digest, file_stat, source_digest
from finetune.data.prepare.records import RecordFile
from finetune.data.sources.located import display_path
from finetune.data.sources.row_conversion import (
    LinesJob,
    RowConverter,
    is_divisible,
    write_lines,
    write_rows,
)
from finetune.data.values import OddValues
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.recipe.roles import IMAGES

VERSION = 5  # of the layout on disk and of the rows that readers return for a file
WORDLESS = ("csv", "tsv")  # formats without a null, so that NA or nan in a cell may stand for one
TOGETHER = 1_000  # rows read in one piece


class Rows(Protocol):
    """Rows of one file or set, with roles as keys.

    name: the file or set, for people. fingerprint: identifies what is read of it, and where the images are that it names.
    content: digest of its content and of these images', the same on every machine and with every version.
    classes: role -> class names, if the data declares them. bad: rows left out.
    odd: values that are read otherwise than they may be meant.
    """

    classes: Mapping[str, Sequence[str]]
    bad: BadRows
    odd: OddValues

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def content(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def values(self, role: str) -> Iterator[Any]: ...
    def place(self, index: int) -> str: ...
    def named_files(self) -> Iterator[str]: ...


class RecordRows:
    """Rows of a text file or an image folder, memory-mapped from JSON records in the cache. Pickles as paths.

    content: digest of the file, or of the names and contents of the folder's images.
    """

    def __init__(self, folder: Path, path: Path, content: str) -> None:
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        self.classes: Mapping[str, Sequence[str]] = {}
        listed = [(display_path(path) + suffix, reason) for suffix, reason in facts["bad"]]
        self.bad = BadRows("skip", listed, facts["bad_count"])
        self.odd = OddValues((kind, name, count, display_path(path) + at) for kind, name, count, at in facts["odd"])
        self._folder, self._path, self._content = folder, path, content
        self._records = RecordFile(folder)
        self._lines = self._records.numbers("line")
        self._names_files: bool = facts["names_files"]

    @property
    def name(self) -> str:
        """The file, for people."""
        return display_path(self._path)

    @property
    def fingerprint(self) -> str:
        return digest("rows", self._folder.name, self.content)

    @cached_property
    def content(self) -> str:
        return digest("content", self._content, joint_digest(self.named_files()))

    def named_files(self) -> Iterator[str]:
        """Paths of the images that rows name, except in folders of images, which are part of `content` already."""
        for role in IMAGES if self._names_files else ():
            yield from filter(None, map(named_file, self.values(role)))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self._records[index].tobytes().decode("utf-8", "surrogatepass"))

    def rows_between(self, first: int, last: int) -> list[dict[str, Any]]:
        """Rows [first, last), read in one piece."""
        records = self._records.between(first, last)
        return [json.loads(record.decode("utf-8", "surrogatepass")) for record in records]

    def values(self, role: str) -> Iterator[Any]:
        for first in range(0, len(self), TOGETHER):
            for row in self.rows_between(first, min(first + TOGETHER, len(self))):
                yield row.get(role)

    def place(self, index: int) -> str:
        number = int(self._lines[index])
        if not number:
            return display_path(self[index].get("image", self._path))
        return f"{display_path(self._path)}{describe_number(number)}"

    def __reduce__(self) -> tuple[type[RecordRows], tuple[Path, Path, str]]:
        return RecordRows, (self._folder, self._path, self._content)


def convert_file(
    path: Path,
    file_format: str,
    source: SourceSection,
    mapping: Mapping[str, str],
    required: Required,
    limit: int | None,
) -> RecordRows:
    """The rows of a text file, converted or loaded from the cache.

    The cache entry is reused while content, format, columns and limit are the same, wherever the file lies.
    file_format: a key of READERS. mapping: role -> column.
    Raises: UserError if the file cannot be read, or changes meanwhile. Bad rows do not raise; they are listed in `bad` of
    the result.
    """
    files = files_of(path, file_format, source)
    try:
        stats, content = [file_stat(file) for file in files], contents_digest(files)
    except OSError as error:
        raise unreadable(path, error) from error
    named = any(role in mapping for role in IMAGES)  # paths are part of the rows
    place = [str(path.parent.resolve()), *map(str, files[1:])] if named else ""
    identity = (content, path.suffixes[-2:], place, file_format, source.split if len(files) > 1 else "")
    options = source.model_dump(include=set(READ_OPTIONS))
    key = digest("file", VERSION, identity, options, dict(mapping), required, limit, source_digest(*ROW_CODE))
    converter = RowConverter(dict(mapping), required, path.parent, words=file_format in WORDLESS)
    name, divisible = display_path(path), is_divisible(path, file_format, source, limit)

    def write(folder: Path) -> None:
        if divisible:
            write_lines(folder, LinesJob(path, source, converter), name)
        else:
            write_rows(folder, READERS[file_format](path, source), converter, limit, name)
        if [file_stat(file) for file in files] != stats:
            raise UserError("the file changed while it was read", where=name, remedy="Run the same command again.")

    return RecordRows(publish("rows", key, write, about=name, resumable=divisible), path, digest(content, limit))


UNLABELED = "no value in column label: the image lies in no folder of a class"


def convert_images(
    folder: Path,
    listing: Sequence[tuple[str, str | None]],
    mapping: Mapping[str, str],
    required: Required,
    limit: int | None,
) -> RecordRows:
    """The images of a folder. listing: (path relative to folder, class) of each, in order."""
    place, code = str(folder.resolve()), source_digest(*ROW_CODE)
    key = digest("images", VERSION, place, listing, dict(mapping), required, limit, code)
    labeled = any("label" in roles for roles in required) and mapping.get("label") == "label"
    rows: Iterator[NumberedRow] = (
        (0, BadRow(f"{name}: {UNLABELED}") if labeled and label is None else {"image": name, "label": label})
        for name, label in listing
    )
    converter, name = RowConverter(dict(mapping), required, folder, known=True), display_path(folder)
    entry = publish("rows", key, lambda new: write_rows(new, rows, converter, limit, name), about=name)
    contents = content_digests((str(folder / image) for image, _ in listing), name)
    return RecordRows(entry, folder, digest("images", listing, contents, limit))
