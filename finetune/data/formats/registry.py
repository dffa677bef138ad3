"""What follows from the registry of file formats (recipe/formats.py): their readers, and the format of a file by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune.data.formats.compression import without_compression
from finetune.data.formats.lines import Reader
from finetune.recipe.data import SourceSection
from finetune.recipe.formats import FORMATS, FormatSpec
from finetune.recipe.targets import load_target

READERS: Mapping[str, Reader] = {name: load_target(spec.reader) for name, spec in FORMATS.items() if spec.reader}
ASKED_READERS: Mapping[str, Reader] = {
    name: load_target(spec.asked_reader or spec.reader) for name, spec in FORMATS.items() if spec.reader
}
EXTENSIONS: Mapping[str, str] = {extension: name for name, spec in FORMATS.items() for extension in spec.extensions}
STREAMED = tuple(name for name, spec in FORMATS.items() if spec.streams)
READ_OPTIONS: Mapping[str, tuple[str, ...]] = {
    option: tuple(name for name, spec in FORMATS.items() if option in spec.options)
    for option in dict.fromkeys(option for spec in FORMATS.values() for option in spec.options)
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
    endings = ("".join(name.suffixes[-2:]).lower(), name.suffix.lower())  # such as .coco.json, and .json
    file_format = next((EXTENSIONS[ending] for ending in endings if ending in EXTENSIONS), "")
    return file_format if file_format and _may_be_called(path, name, FORMATS[file_format]) else ""


def _may_be_called(path: Path, name: Path, spec: FormatSpec) -> bool:
    """Whether a file of the format may be compressed as `path` is; name: the path without the ending that says so."""
    return name == path or spec.is_compressible


def files_of(path: Path, file_format: str, source: SourceSection) -> list[Path]:
    """All files that the rows of a file are made of: itself, or several. Raises: UserError if one is missing."""
    spec = FORMATS[file_format]
    found: list[Path] = load_target(spec.files)(path, source) if spec.files else [path]
    return found


def format_by_content(path: Path) -> str:
    """The format by the extension; where a format is recognized by its content, by that: annotations have any name."""
    file_format, name = format_of(path), without_compression(path)
    for other, spec in FORMATS.items():
        if name.suffix.lower() not in spec.recognized or other == file_format or not _may_be_called(path, name, spec):
            continue
        if load_target(spec.recognizer)(path):
            return other
    return file_format


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
