"""Tests that parallel files are read line by line, with their extensions as columns, and that a mismatch is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.data.bad_rows import BadRow
from finetune.data.formats.parallel_text import parallel_files, read_parallel
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS


def _read(folder: Path, **files: str) -> list[tuple[int, Any]]:
    for ending, content in files.items():
        (folder / f"train.{ending}").write_text(content, encoding="utf-8")
    path = folder / "train.{de,en}"
    return list(read_parallel(path, SourceSection(source=str(path))))


def test_the_nth_lines_belong_together(tmp_path: Path) -> None:
    rows = _read(tmp_path, de="ein Hund\n\nRegen\n", en="a dog\nnothing\nrain")
    assert rows[0] == (1, {"de": "ein Hund", "en": "a dog"}) and rows[2] == (3, {"de": "Regen", "en": "rain"})
    assert rows[1][0] == 2 and isinstance(rows[1][1], BadRow) and str(rows[1][1]) == "de is empty"


def test_files_of_unequal_length_are_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.\{de,en\}:2: en ends before line 2"):
        _read(tmp_path, de="a\nb\n", en="c\n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.de").write_text("a\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.en: no such file"):
        parallel_files(tmp_path / "train.{de,en}")
    with pytest.raises(UserError, match="parallel text needs several"):
        parallel_files(tmp_path / "train.de")


def test_a_recipe_opens_them_and_sees_a_change_of_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    card = CARDS["seq2seq"]
    data = {"train": str(tmp_path / "train.{de,en}"), "columns": {"source": "de", "target": "en"}}
    recipe = recipe_type(card)(name="x", task="seq2seq", model={"source": "m"}, data=data)
    for english in ("a dog", "the dog"):
        _read(tmp_path, de="ein Hund\n", en=f"{english}\n")
        table = open_tables(recipe, card)["train"]
        assert dict(table[0]) == {"source": "ein Hund", "target": english}
        assert table.place(0).endswith("train.{de,en}:1")
