"""Proves that a format is known in one place: its entry says what recipes, pipes, options and extensions know of it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from finetune.data.formats.registry import EXTENSIONS, READ_OPTIONS, READERS, STREAMED, advice, format_of
from finetune.recipe.data import SourceSection
from finetune.recipe.formats import FORMATS, NO_FILES, FormatName
from finetune.recipe.targets import load_target

FUNCTIONS = ("reader", "asked_reader", "files", "header", "hint", "notes", "recognizer")


def test_recipes_name_every_format() -> None:
    assert get_args(FormatName) == ("auto", *FORMATS, *NO_FILES) and len(FORMATS) == 12


def test_what_entries_name_is_there() -> None:
    named = {getattr(spec, name) for spec in FORMATS.values() for name in FUNCTIONS} - {""}
    assert len(named) == 27 and all(callable(load_target(one)) for one in named)
    assert all(bool(spec.recognizer) == bool(spec.recognized) for spec in FORMATS.values())


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
    assert len(EXTENSIONS) == sum(len(spec.extensions) for spec in FORMATS.values()) == 20, (
        "an extension of two formats"
    )


def test_a_compressed_file_has_a_format_where_it_can_be_read() -> None:
    assert format_of(Path("a.csv.gz")) == "csv" and format_of(Path("a.parquet.gz")) == "" == format_of(Path("a.x"))
    assert "decompress it" in advice(Path("a.parquet.gz"))
    assert advice(Path("a.x")).endswith(
        "jsonl, json, csv, tsv, text, conll, parallel, xlsx, coco, yolo, parquet, arrow."
    )
