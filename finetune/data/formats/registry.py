"""The file formats: their readers, extensions and options. A new text format is a reader, an entry here, and a name in
`FileFormat` of recipe/data.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from finetune.data.formats import coco
from finetune.data.formats.compression import without_compression
from finetune.data.formats.conll import read_conll
from finetune.data.formats.delimited import (
    csv_columns,
    csv_hint,
    csv_notes,
    read_csv,
    read_tsv,
    tsv_columns,
    tsv_hint,
    tsv_notes,
)
from finetune.data.formats.json_file import read_json
from finetune.data.formats.lines import Reader, read_jsonl
from finetune.data.formats.parallel_text import read_parallel
from finetune.data.formats.plain_text import read_text, text_hint, text_notes
from finetune.data.formats.workbook import read_workbook, workbook_columns, workbook_notes
from finetune.recipe.data import SourceSection

# Formats read row by row with line numbers. Parquet and Arrow files are opened by sources/arrow_files.py.
READERS: Mapping[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "xlsx": read_workbook,
    "text": read_text,
    "conll": read_conll,
    "parallel": read_parallel,
    "coco": coco.read_coco,
}

# The columns of formats with a header.
HEADERS: Mapping[str, Callable[[Path, SourceSection], list[str]]] = {
    "csv": csv_columns,
    "tsv": tsv_columns,
    "xlsx": workbook_columns,
}

# What to do if a column is not found, "" if there is no advice.
HINTS: Mapping[str, Callable[[Path, SourceSection], str]] = {"csv": csv_hint, "tsv": tsv_hint, "text": text_hint}

# What a user should know about how a file is read, seen in its first rows.
NOTES: Mapping[str, Callable[[Path, SourceSection], list[str]]] = {
    "csv": csv_notes,
    "tsv": tsv_notes,
    "xlsx": workbook_notes,
    "text": text_notes,
}

EXTENSIONS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".txt": "text",
    ".text": "text",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}

ENCODED = ("jsonl", "json", "csv", "tsv", "text", "conll", "parallel")  # text in an encoding, maybe compressed
COMPRESSIBLE = (*ENCODED, "coco")

# Options of a source that change how its files are read, and the formats that have them.
READ_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "header": ("csv", "tsv", "xlsx", "conll"),
    "images": ("coco",),
    "encoding": ENCODED,
    "sheet": ("xlsx",),
    "sample_by": ("text",),
}

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
    ".yaml": "Convert it to .jsonl, one object per row (of a YOLO data set, see docs/your-data.md, Boxes).",
    ".pdf": "Convert it to text.",
    ".docx": "Convert it to text.",
}


def format_of(path: Path) -> str:
    """The format by the extension of a file, before .gz, .bz2, .xz or .zst; "" if it is unknown."""
    name = without_compression(path)
    if name.name.lower().endswith(coco.EXTENSION):
        return "coco"
    file_format = EXTENSIONS.get(name.suffix.lower(), "")
    return file_format if name == path or file_format in COMPRESSIBLE else ""


def format_by_content(path: Path) -> str:
    """The format by the extension; of a JSON file by its beginning, too: annotations in COCO format have any name."""
    file_format = format_of(path)
    return "coco" if file_format == "json" and coco.is_coco(path) else file_format


def advice(path: Path) -> str:
    """The remedy for a file whose format is not known by its extension."""
    name = without_compression(path)
    if name != path and EXTENSIONS.get(name.suffix.lower()):
        return f"A compressed {name.suffix} file cannot be read: decompress it."
    if name.suffix.lower() in UNSUPPORTED:
        return UNSUPPORTED[name.suffix.lower()]
    return (
        f"If it is text of a known format, say which with `format:`: {', '.join(ENCODED)}, xlsx, parquet, arrow, coco."
    )
