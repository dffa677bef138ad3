"""Converts the rows of a text file to JSON records: one after the other, or JSON lines by several workers.

A file of JSON lines is divided at fixed byte positions; the lines that start between two of them are one chunk. So the records
are the same for any number of workers, and an interrupted conversion continues.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow, BlankLine, UnusedCategory
from finetune.data.columns import Required, apply_roles, check_required
from finetune.data.formats.compression import without_compression
from finetune.data.formats.encodings import encoding_mark, is_utf8
from finetune.data.formats.lines import NumberedRow, describe_number, read_jsonl_between
from finetune.data.image_values import named_file, resolve_image
from finetune.data.prepare.chunk_writer import ChunkRecords, ChunkWriter
from finetune.data.prepare.pool import Chunk, map_chunks
from finetune.data.prepare.progress import Meter, current_stage
from finetune.data.values import BLANK_LINE, UNUSED, OddValues, check_text, without_nan
from finetune.recipe.data import SourceSection
from finetune.recipe.roles import IMAGES

ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # json.dumps makes one for each row
ROWS = 2_000  # converted between two reports of progress
CHUNK_BYTES = 4 << 20  # of a file that is divided


@dataclass
class Converted:
    """Some rows as records, with the line of each as its number.

    bad: (line, place, reason): place is "" for rows with a line. lines: of the file that were read for them.
    """

    records: list[bytes] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    odd: list[tuple[str, str, int, int]] = field(default_factory=list)
    names_files: bool = False
    lines: int = 0


@dataclass(frozen=True)
class RowConverter:
    """mapping: role -> column. base: the folder that paths in rows are relative to. words: text may stand for null (csv).

    known: the files that rows name are part of the content of the folder.
    """

    mapping: Mapping[str, str]
    required: Required
    base: Path
    words: bool = False
    known: bool = False

    def convert(self, rows: Iterable[NumberedRow]) -> Converted:
        """Rows with their lines -> records."""
        found, odd = Converted(), OddValues()
        for line, raw in rows:
            if isinstance(raw, BlankLine):
                odd.add(BLANK_LINE, "", str(line))
                continue
            if isinstance(raw, UnusedCategory):
                odd.add(UNUSED, raw.name, str(line))
                continue
            try:
                if isinstance(raw, BadRow):
                    raise raw
                odd.look(raw, self.mapping, str(line), words=self.words)
                row = self._with_paths(apply_roles(raw, self.mapping))
                check_required(row, self.required, self.mapping)
                record = self._record(row)
            except BadRow as error:
                place = "" if line or isinstance(raw, BadRow) else f"/{raw['image']}"
                found.bad.append((line, place, str(error)))
                continue
            if not found.names_files and not self.known:
                found.names_files = any(named_file(row.get(role)) for role in IMAGES)
            found.records.append(record)
            found.numbers.append(line)
        found.odd = [(kind, column, count, int(first)) for kind, column, count, first in odd.to_list()]
        return found

    def _record(self, row: dict[str, Any]) -> bytes:
        """The row as JSON; NaN inside of lists and mappings becomes null. Raises: BadRow for text that is no text.

        In columns that the task does not read, and in names of files, halves of surrogate pairs stay as they are.
        """
        try:
            return ENCODER.encode(row).encode("utf-8")
        except ValueError:  # NaN, or half of a surrogate pair: rare, so only such rows are looked through
            for role, column in self.mapping.items():
                if role not in IMAGES:
                    check_text(row.get(role), column)
            return json.dumps(without_nan(row), ensure_ascii=False).encode("utf-8", "surrogatepass")

    def _with_paths(self, row: dict[str, Any]) -> dict[str, Any]:
        for role in IMAGES:
            if row.get(role) is not None:
                row[role] = resolve_image(row[role], self.base)
        return row


@dataclass(frozen=True)
class LinesJob:
    """Converts the JSON lines that start in a range of bytes; see pool.Job."""

    path: Path
    source: SourceSection
    converter: RowConverter

    def run(self, chunk: Chunk) -> Converted:
        """Lines are numbered from 1 within the chunk."""
        counted = [0]
        found = self.converter.convert(read_jsonl_between(self.path, self.source, *chunk, counted=counted))
        found.lines = counted[0]
        return found

    def describe(self, chunk: Chunk) -> str:
        return f"{self.path}, bytes {chunk[0]:,} to {chunk[1]:,}"


def is_divisible(path: Path, file_format: str, source: SourceSection, limit: int | None) -> bool:
    """Whether the file can be divided: JSON lines in UTF-8, not compressed, and worth it."""
    if file_format != "jsonl" or limit is not None or not is_utf8(source.encoding):
        return False
    return without_compression(path) == path and path.stat().st_size > CHUNK_BYTES and not encoding_mark(path)


def write_rows(
    folder: Path, rows: Iterator[NumberedRow], converter: RowConverter, limit: int | None, name: str
) -> None:
    """Convert rows one after the other, at most `limit` good ones."""
    with RowWriter(folder) as writer:
        meter = Meter(name, 0, doing="reading")
        while limit is None or writer.count < limit:
            some = list(islice(rows, ROWS if limit is None else min(ROWS, limit - writer.count)))
            if not some:
                break
            writer.add(converter.convert(some), next_unit=0)
            meter.update(writer.count)
        meter.close()
        writer.write_facts()


def write_lines(folder: Path, job: LinesJob, name: str) -> None:
    """Convert a file of JSON lines, in chunks; `folder` may hold what an earlier attempt has done."""
    size = job.path.stat().st_size
    with RowWriter(folder) as writer:
        starts = range(writer.next_unit, size, CHUNK_BYTES)
        chunks = [(start, min(start + CHUNK_BYTES, size)) for start in starts]
        meter = Meter(name, size >> 20, doing="reading", unit="MiB", done=writer.next_unit >> 20)
        for chunk, converted in map_chunks(job, chunks, workers=current_stage().workers):
            writer.add(converted, next_unit=chunk[1])
            meter.update(chunk[1] >> 20)
        meter.close()
        writer.write_facts()


class RowWriter(ChunkWriter):
    """Appends converted rows, whose lines are counted on from chunk to chunk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, tags=("line",))

    def add(self, converted: Converted, *, next_unit: int) -> None:
        """Append the rows of the next chunk."""
        lines, names_files, odd = self.extra or (0, False, [])
        numbers = converted.numbers
        if lines:
            numbers = array("q", [line + lines for line in numbers])
        together = OddValues([tuple(item) for item in odd])
        together.extend(
            OddValues([(kind, name, count, describe_number(at + lines)) for kind, name, count, at in converted.odd])
        )
        records = ChunkRecords(
            b"".join(converted.records),
            array("q", map(len, converted.records)),
            (numbers,),
            bad=[(place or describe_number(line and line + lines), reason) for line, place, reason in converted.bad],
        )
        state = (lines + converted.lines, names_files or converted.names_files, together.to_list())
        self.append(records, next_unit, state)

    def write_facts(self) -> None:
        """All rows are there."""
        _, names_files, odd = self.extra or (0, False, [])
        facts = {"bad": self.bad.listed, "bad_count": self.bad.count, "odd": odd, "names_files": names_files}
        (self._folder / "facts.json").write_text(json.dumps(facts), "utf-8")
        self.finish()
