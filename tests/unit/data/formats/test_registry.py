"""Proves that a format is known in one place: its entry says what recipes, pipes, options and extensions know of it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from finetune.data.formats.registry import EXTENSIONS, FORMATS, READ_OPTIONS, READERS, STREAMED, advice, format_of
from finetune.recipe.data import FileFormat, SourceSection

NO_FILES = {"auto", "imagefolder", "hub", "builtin"}  # what `format:` may also be


def test_recipes_name_every_format_and_no_other() -> None:
    assert set(FORMATS) == set(get_args(FileFormat)) - NO_FILES and len(FORMATS) == 12


def test_what_follows_from_the_entries() -> None:
    assert set(FORMATS) - set(READERS) == {"parquet", "arrow"}
    assert STREAMED == ("jsonl", "json", "csv", "tsv", "text", "conll")
    assert READ_OPTIONS == {
        "header": ("csv", "tsv", "xlsx", "conll"),
        "images": ("coco",),
        "encoding": ("jsonl", "json", "csv", "tsv", "text", "conll", "parallel"),
        "sheet": ("xlsx",),
        "sample_by": ("text",),
    }
    assert {option for spec in FORMATS.values() for option in spec.options} == set(READ_OPTIONS)
    assert set(READ_OPTIONS) <= set(SourceSection.model_fields)
    assert len(EXTENSIONS) == sum(len(spec.extensions) for spec in FORMATS.values()) == 19, (
        "an extension of two formats"
    )


def test_a_compressed_file_has_a_format_where_it_can_be_read() -> None:
    assert format_of(Path("a.csv.gz")) == "csv" and format_of(Path("a.parquet.gz")) == "" == format_of(Path("a.x"))
    assert "decompress it" in advice(Path("a.parquet.gz"))
    assert advice(Path("a.x")).endswith(
        "jsonl, json, csv, tsv, text, conll, parallel, xlsx, coco, yolo, parquet, arrow."
    )
