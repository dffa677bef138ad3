"""Data that cannot be evaluated: the advice at the end fits what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.app.evaluated_data import check_evaluated_data, evaluated_split, open_evaluated_table
from finetune.app.preparation.identities import sources_identity
from finetune.errors import UserError
from finetune.recipe.load import load_recipe
from finetune.recipe.recipe import Recipe
from finetune.tasks import CARDS

RECIPE = """\
name: evaluated
task: text_classification
model: {source: someone/some-model}
data: {train: a.csv, validation: builtin:nothing}
"""
COLUMNS = "data.columns.ROLE=COLUMN"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "a.csv").write_text("text,label\nx,y\n", encoding="utf-8")
    (tmp_path / "words.csv").write_text("words,label\nx,y\n", encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "blank.jsonl").write_text("\n\n", encoding="utf-8")
    (tmp_path / "head.csv").write_text("text,label\n", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text("{", encoding="utf-8")
    (tmp_path / "broken.parquet").write_text("PAR1 and more", encoding="utf-8")
    return load_recipe(tmp_path / "r.yaml", (), CARDS).recipe


def refusal(recipe: Recipe, *data: str) -> str:
    with pytest.raises(UserError) as refused:
        check_evaluated_data(recipe, "validation", list(data))
    return str(refused.value)


@pytest.mark.parametrize("name", ["empty.jsonl", "blank.jsonl", "head.csv"])
def test_a_file_without_rows(recipe: Recipe, name: str) -> None:
    said = refusal(recipe, name)
    assert f"{name}: is empty. Give a file with rows, or leave it out." in said
    assert COLUMNS not in said and "recipe" not in said


@pytest.mark.parametrize("name", ["broken.jsonl", "absent.csv", "broken.parquet"])
def test_a_file_that_cannot_be_read(recipe: Recipe, name: str) -> None:
    said = refusal(recipe, "a.csv", name)
    assert name in said and COLUMNS not in said and ".. " not in said


def test_data_of_several_splits(recipe: Recipe, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "ds").mkdir(exist_ok=True)
        (tmp_path / "ds" / f"{split}.csv").write_text("text,label\nx,y\n", encoding="utf-8")
    assert "--split test --set data.test='{source: FILE, split: NAME}'" in refusal(recipe, "ds")


def test_a_split_that_is_not_there(recipe: Recipe) -> None:
    assert "builtin:nothing: no such built-in dataset" in (said := refusal(recipe)) and COLUMNS not in said


def test_a_column_of_another_name(recipe: Recipe) -> None:
    assert COLUMNS in refusal(recipe, "words.csv")
    assert COLUMNS in refusal(recipe, "words.csv", "empty.jsonl")


def test_how_other_data_is_read(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "bare.txt").write_text("some words;x\nmore words;y\n", encoding="utf-8")
    read = ["format=csv", "header=text,label"]
    check_evaluated_data(recipe, "validation", ["bare.txt"], read)
    table = open_evaluated_table(recipe, "validation", ["bare.txt"], read)
    assert [(row["text"], row["label"]) for row in table] == [("some words", "x"), ("more words", "y")]
    with pytest.raises(UserError):  # a text file without --read has one column
        check_evaluated_data(recipe, "validation", ["bare.txt"])
    assert len(sources_identity(recipe, "", ["bare.txt"], read)) == 1
    with pytest.raises(UserError, match=r"there is no key 'formt' \(did you mean format"):
        check_evaluated_data(recipe, "validation", ["bare.txt"], ["formt=csv"])


def test_how_a_split_is_read_is_the_recipes(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="format=csv says how other data is read, but none is given"):
        evaluated_split("test", [], ["format=csv"])
