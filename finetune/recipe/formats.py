"""The file formats there are: one entry each. Nothing of a reader is imported here.

To add one: a file in `data/formats/` with a reader of it, and an entry in `FORMATS`. The schema of recipes, the inference of a
format from the name of a file, the options of a source and standard input read this registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

_HOME = "finetune.data.formats"


@dataclass(frozen=True)
class FormatSpec:
    """Functions are named as "module:function"; "" for none. All but the recognizer take (path, source).

    reader: yields rows with their line numbers (see data/formats/lines.py::Reader); "": typed columns, opened by
    data/sources/arrow_files.py. extensions: in lower case; the longest that fits decides.
    asked_reader: the same for rows that are only asked, if it differs. columns: those of every file; (): they are read.
    files: all files that rows are made of, if there are several.
    header: the columns of a file that names them. hint: what to do if a column is not found, "" if there is no advice. notes:
    what a user should know about how a file is read, seen in its first rows.
    recognizer: (path) -> whether a file with one of the extensions `recognized` has this format, by its content.
    options: keys of a source that change how its files are read. is_text: text in an encoding. streams: it is read from front
    to end, so that it may come through a pipe. is_compressible: its files may be compressed.
    """

    reader: str = ""
    extensions: tuple[str, ...] = ()
    asked_reader: str = ""
    columns: tuple[str, ...] = ()
    files: str = ""
    header: str = ""
    hint: str = ""
    notes: str = ""
    recognizer: str = ""
    recognized: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    is_text: bool = False
    streams: bool = False
    is_compressible: bool = False


def _text(reader: str, *extensions: str, options: tuple[str, ...] = (), **more: Any) -> FormatSpec:
    """A format of text, which may be compressed."""
    shared: dict[str, Any] = {"options": (*options, "encoding"), "is_text": True, "is_compressible": True}
    return FormatSpec(reader, extensions, **{"streams": True, **shared, **more})


FORMATS: Mapping[str, FormatSpec] = {
    "jsonl": _text(f"{_HOME}.lines:read_jsonl", ".jsonl", ".ndjson"),
    "json": _text(f"{_HOME}.json_file:read_json", ".json"),
    "csv": _text(
        f"{_HOME}.delimited:read_csv",
        ".csv",
        options=("header",),
        header=f"{_HOME}.delimited:csv_columns",
        hint=f"{_HOME}.delimited_notes:csv_hint",
        notes=f"{_HOME}.delimited_notes:csv_notes",
    ),
    "tsv": _text(
        f"{_HOME}.delimited:read_tsv",
        ".tsv",
        ".tab",
        options=("header",),
        header=f"{_HOME}.delimited:tsv_columns",
        hint=f"{_HOME}.delimited_notes:tsv_hint",
        notes=f"{_HOME}.delimited_notes:tsv_notes",
    ),
    "xlsx": FormatSpec(
        f"{_HOME}.workbook:read_workbook",
        (".xlsx", ".xlsm"),
        header=f"{_HOME}.workbook:workbook_columns",
        notes=f"{_HOME}.workbook:workbook_notes",
        options=("header", "sheet"),
    ),
    "text": _text(
        f"{_HOME}.plain_text:read_text",
        ".txt",
        ".text",
        options=("sample_by",),
        hint=f"{_HOME}.plain_text:text_hint",
        notes=f"{_HOME}.plain_text:text_notes",
    ),
    "conll": _text(f"{_HOME}.conll:read_conll", ".conll", ".conllu", ".bio", ".iob", options=("header",)),
    "parallel": _text(
        f"{_HOME}.parallel_text:read_parallel", streams=False, files=f"{_HOME}.parallel_text:files_of_source"
    ),
    "coco": FormatSpec(
        f"{_HOME}.coco:read_coco",
        (".coco.json",),
        asked_reader=f"{_HOME}.coco:read_asked",
        columns=("image", "objects"),
        recognizer=f"{_HOME}.coco:is_coco",
        recognized=(".json",),
        options=("images",),
        is_compressible=True,
    ),
    "yolo": FormatSpec(
        f"{_HOME}.yolo:read_yolo",
        asked_reader=f"{_HOME}.yolo:read_asked",
        columns=("image", "objects"),
        files=f"{_HOME}.yolo:yolo_files",
        notes=f"{_HOME}.yolo:yolo_notes",
        recognizer=f"{_HOME}.yolo_yaml:is_yolo",
        recognized=(".yaml", ".yml"),
    ),
    "parquet": FormatSpec("", (".parquet", ".pq")),
    "arrow": FormatSpec("", (".arrow", ".feather", ".ipc")),
}

NO_FILES = ("imagefolder", "hub", "builtin")  # what the rows of a source may also come from

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[("auto", *FORMATS, *NO_FILES)]
