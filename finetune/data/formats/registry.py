"""The file formats, one entry each. A new one is a reader, an entry in `FORMATS`, a name in `FileFormat` of recipe/data.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.formats import coco, yolo
from finetune.data.formats.annotations import COLUMNS
from finetune.data.formats.compression import without_compression
from finetune.data.formats.conll import read_conll
from finetune.data.formats.delimited import csv_columns, read_csv, read_tsv, tsv_columns
from finetune.data.formats.delimited_notes import csv_hint, csv_notes, tsv_hint, tsv_notes
from finetune.data.formats.json_file import read_json
from finetune.data.formats.lines import Reader, read_jsonl
from finetune.data.formats.parallel_text import parallel_files, read_parallel
from finetune.data.formats.plain_text import read_text, text_hint, text_notes
from finetune.data.formats.workbook import read_workbook, workbook_columns, workbook_notes
from finetune.recipe.data import SourceSection


@dataclass(frozen=True)
class FormatSpec:
    """reader: rows with their line numbers; None: typed columns, opened by sources/arrow_files.py.

    asked_reader: the same for rows that are only asked, if it differs. columns: those of every file; (): they are read.
    files: all files that rows are made of, if there are several.
    header: the columns of a file that names them. hint: what to do if a column is not found, "" if there is no advice. notes:
    what a user should know about how a file is read, seen in its first rows.
    options: keys of a source that change how its files are read. is_text: text in an encoding. streams: it is read from front
    to end, so that it may come through a pipe. is_compressible: its files may be compressed.
    """

    reader: Reader | None
    extensions: tuple[str, ...] = ()
    asked_reader: Reader | None = None
    columns: tuple[str, ...] = ()
    files: Callable[[Path, SourceSection], list[Path]] | None = None
    header: Callable[[Path, SourceSection], list[str]] | None = None
    hint: Callable[[Path, SourceSection], str] | None = None
    notes: Callable[[Path, SourceSection], list[str]] | None = None
    options: tuple[str, ...] = ()
    is_text: bool = False
    streams: bool = False
    is_compressible: bool = False


def _text(reader: Reader, *extensions: str, options: tuple[str, ...] = (), **more: Any) -> FormatSpec:
    """A format of text, which may be compressed."""
    shared: dict[str, Any] = {"options": (*options, "encoding"), "is_text": True, "is_compressible": True}
    return FormatSpec(reader, extensions, **{"streams": True, **shared, **more})


FORMATS: Mapping[str, FormatSpec] = {
    "jsonl": _text(read_jsonl, ".jsonl", ".ndjson"),
    "json": _text(read_json, ".json"),
    "csv": _text(read_csv, ".csv", options=("header",), header=csv_columns, hint=csv_hint, notes=csv_notes),
    "tsv": _text(read_tsv, ".tsv", ".tab", options=("header",), header=tsv_columns, hint=tsv_hint, notes=tsv_notes),
    "xlsx": FormatSpec(
        read_workbook,
        (".xlsx", ".xlsm"),
        header=workbook_columns,
        notes=workbook_notes,
        options=("header", "sheet"),
    ),
    "text": _text(read_text, ".txt", ".text", options=("sample_by",), hint=text_hint, notes=text_notes),
    "conll": _text(read_conll, ".conll", ".conllu", ".bio", ".iob", options=("header",)),
    "parallel": _text(read_parallel, streams=False, files=lambda path, _: list(parallel_files(path).values())),
    "coco": FormatSpec(
        coco.read_coco, asked_reader=coco.read_asked, columns=COLUMNS, options=("images",), is_compressible=True
    ),
    "yolo": FormatSpec(
        yolo.read_yolo,
        asked_reader=yolo.read_asked,
        columns=COLUMNS,
        files=yolo.yolo_files,
        notes=yolo.yolo_notes,
    ),
    "parquet": FormatSpec(None, (".parquet", ".pq")),
    "arrow": FormatSpec(None, (".arrow", ".feather", ".ipc")),
}

READERS: Mapping[str, Reader] = {name: spec.reader for name, spec in FORMATS.items() if spec.reader is not None}
ASKED_READERS: Mapping[str, Reader] = {
    name: spec.asked_reader or spec.reader for name, spec in FORMATS.items() if spec.reader is not None
}
EXTENSIONS: Mapping[str, str] = {extension: name for name, spec in FORMATS.items() for extension in spec.extensions}
STREAMED = tuple(name for name, spec in FORMATS.items() if spec.streams)
READ_OPTIONS: Mapping[str, tuple[str, ...]] = {
    option: tuple(name for name, spec in FORMATS.items() if option in spec.options)
    for option in ("header", "images", "encoding", "sheet", "sample_by")
}
"""Option of a source -> the formats that have it."""

# Extensions of files that cannot be read, and what to do instead.
UNSUPPORTED: Mapping[str, str] = {
    ".zip": "Unpack it.",
    ".tar": "Unpack it.",
    ".tgz": "Unpack it.",
    ".7z": "Unpack it.",
    ".rar": "Unpack it.",
    ".lz4": "Decompress it, or compress it with gzip, bzip2, xz or zstd.",
    ".xls": "Save it as .xlsx or .csv.",
    ".ods": "Save it as .xlsx or .csv.",
    ".pkl": "Pickles may run any code, so they are not read. Save the data as .parquet.",
    ".pickle": "Pickles may run any code, so they are not read. Save the data as .parquet.",
    ".pt": "Save the data as .parquet or .jsonl.",
    ".npy": "Save the data as .parquet.",
    ".npz": "Save the data as .parquet.",
    ".h5": "Save the data as .parquet.",
    ".hdf5": "Save the data as .parquet.",
    ".orc": "Save the data as .parquet.",
    ".avro": "Save the data as .parquet.",
    ".tfrecord": "Save the data as .parquet.",
    ".sqlite": "Export a table as .csv.",
    ".db": "Export a table as .csv.",
    ".xml": "Convert it to .jsonl, one object per row.",
    ".html": "Convert it to .jsonl, one object per row.",
    ".yaml": "Convert it to .jsonl, one object per row. A data.yaml of YOLO needs `names:`, and `train:` or `val:`.",
    ".pdf": "Convert it to text.",
    ".docx": "Convert it to text.",
}


def format_of(path: Path) -> str:
    """The format by the extension of a file, before .gz, .bz2, .xz or .zst; "" if it is unknown."""
    name = without_compression(path)
    if name.name.lower().endswith(coco.EXTENSION):
        return "coco"
    file_format = EXTENSIONS.get(name.suffix.lower(), "")
    return file_format if name == path or (file_format and FORMATS[file_format].is_compressible) else ""


def files_of(path: Path, file_format: str, source: SourceSection) -> list[Path]:
    """All files that the rows of a file are made of: itself, or several. Raises: UserError if one is missing."""
    spec = FORMATS[file_format]
    return [path] if spec.files is None else spec.files(path, source)


def format_by_content(path: Path) -> str:
    """The format by the extension; of JSON and YAML files by their content, too: annotations have any name."""
    if path.suffix.lower() in yolo.EXTENSIONS and yolo.is_yolo(path):
        return "yolo"
    file_format = format_of(path)
    return "coco" if file_format == "json" and coco.is_coco(path) else file_format


def advice(path: Path) -> str:
    """The remedy for a file whose format is not known by its extension."""
    name = without_compression(path)
    if name != path and EXTENSIONS.get(name.suffix.lower()):
        return f"A compressed {name.suffix} file cannot be read: decompress it."
    if name.suffix.lower() in UNSUPPORTED:
        return UNSUPPORTED[name.suffix.lower()]
    others = (name for name, spec in FORMATS.items() if not spec.is_text)
    known = ", ".join((*READ_OPTIONS["encoding"], *others))
    return f"If it is text of a known format, say which with `format:`: {known}."
