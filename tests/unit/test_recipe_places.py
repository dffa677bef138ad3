"""Proves that what is found in the data of a recipe is reported with its key as it was written, and its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.app.recipe_check import check_recipe
from finetune.errors import Fault, RecipeFaults
from finetune.recipe.load import load_recipe
from finetune.tasks import CARDS

HEAD = """\
name: places
task: text_classification
model: {source: someone/some-model}
data:
"""
ALONE = "  train: builtin:nothing\n"
MAPPING = "  train:\n    source: builtin:nothing\n"
LIST = "  train:\n    - source: a.csv\n    - source: builtin:nothing\n"


def found(tmp_path: Path, data: str, *sets: str) -> list[Fault]:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(HEAD + data, encoding="utf-8")
    (tmp_path / "a.csv").write_text("text,label\nx,y\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("words,label\nx,y\n", encoding="utf-8")
    with pytest.raises(RecipeFaults) as caught:
        check_recipe(load_recipe(recipe, sets, CARDS))
    return list(caught.value.faults)


@pytest.mark.parametrize(
    ("data", "sets", "place"),
    [
        (ALONE, (), "r.yaml:5: data.train.source: no such"),
        (MAPPING, (), "r.yaml:6: data.train.source: no such"),
        (LIST, (), "r.yaml:7: data.train.1.source: no such"),
        (LIST, ("data.train=builtin:nothing",), "--set data.train: data.train.source: no such"),
        ("  train: [builtin:nothing]\n", (), "r.yaml:5: data.train.0.source: no such"),
        (MAPPING.replace("nothing", "digits\n    split: x"), (), "r.yaml:7: data.train.split: builtin:digits has no"),
        (
            MAPPING.replace("builtin:nothing", "b.csv\n    columns: {text: wrds}"),
            (),
            "r.yaml:7: data.train.columns.text:",
        ),
        ("  train: b.csv\n", (), "r.yaml:4: data.columns.text: b.csv: no column"),
        ("  columns: {label: label}\n  train: b.csv\n", (), "r.yaml:5: data.columns.text: b.csv: no column"),
    ],
)
def test_a_fault_names_the_key_as_written_and_its_line(tmp_path, monkeypatch, data, sets, place) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(str(fault).startswith(place) or f"/{place}" in str(fault) for fault in found(tmp_path, data, *sets)), [
        str(fault) for fault in found(tmp_path, data, *sets)
    ]


def test_keys_that_a_single_source_does_not_have(tmp_path) -> None:
    text = HEAD + "  train: {source: a.csv, limits: 3, seed: 4}\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "a.csv").write_text("text,label\nx,y\n", encoding="utf-8")
    with pytest.raises(RecipeFaults) as caught:
        load_recipe(tmp_path / "r.yaml", (), CARDS)
    shown = str(caught.value)
    assert "did you mean  data.train.limit" in shown
    assert "data.train.limits: unknown key" in shown
    assert "data.train.0" not in shown
