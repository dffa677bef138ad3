"""The file formats: their readers and file extensions. A new text format is a reader, an entry here, and a name in
`FileFormat` of recipe/data.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune.data.formats import coco
from finetune.data.formats.conll import read_conll
from finetune.data.formats.json_file import read_json
from finetune.data.formats.lines import Reader, read_csv, read_jsonl, read_tsv
from finetune.data.formats.parallel_text import read_parallel

# Text formats, read row by row with line numbers. Parquet and Arrow files are opened by sources/arrow_rows.py.
READERS: Mapping[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "conll": read_conll,
    "parallel": read_parallel,
    "coco": coco.read_coco,
}

EXTENSIONS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


def format_of(path: Path) -> str:
    """The format by the extension of a file, ignoring .gz; "" if it is unknown."""
    name = path.with_suffix("") if path.suffix == ".gz" else path
    if name.name.lower().endswith(coco.EXTENSION):
        return "coco"
    return EXTENSIONS.get(name.suffix.lower(), "")
