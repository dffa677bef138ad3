"""Proves which values are paths, and that they are relative to the recipe (from --set: to the current folder)."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.recipe.load import load_recipe
from finetune.recipe.paths import is_local, is_present

from .conftest import CARDS


@pytest.mark.parametrize(
    ("value", "local"),
    [
        ("./a", True),
        ("../a", True),
        ("/a", True),
        ("~/a", True),
        ("a.jsonl", True),
        ("data/*.parquet", True),
        ("a.csv.gz", True),
        ("here", True),
        ("someone/model", False),
        ("bert-base-uncased", False),
        ("builtin:digits", False),
        ("package:a/b", False),
        ("train:8000", False),
        ("hf://datasets/a/b.csv", False),
        ("s3://bucket/a.jsonl", False),
        ("zero2", False),
        ("", False),
    ],
)
def test_what_is_a_path(tmp_path: Path, value: str, local: bool) -> None:
    (tmp_path / "here").mkdir()
    assert is_local(value, tmp_path) is local


def test_paths_are_relative_to_the_recipe_and_those_of_set_to_the_current_folder(tmp_path, monkeypatch) -> None:
    folder, current = tmp_path / "recipes", tmp_path / "current"
    for made in (folder, current, folder / "model"):
        made.mkdir()
    (folder / "r.yaml").write_text(
        "name: a\ntask: sorting\nmodel: {source: ./model, tokenizer: someone/tokenizer, processor: model}\n"
        "data: {train: [a.jsonl, ../b.csv, someone/data], validation: /c.tsv}\n"
    )
    monkeypatch.chdir(current)
    sets = ["data.test=d.jsonl", "parallel.deepspeed=./mine.json"]
    recipe = load_recipe(folder / "r.yaml", sets, CARDS, here=False).recipe
    assert recipe.model.source == recipe.model.processor == str(folder / "model")
    assert recipe.model.tokenizer == "someone/tokenizer"
    assert [s.source for s in recipe.data.train] == [str(folder / "a.jsonl"), str(tmp_path / "b.csv"), "someone/data"]
    assert recipe.data.validation[0].source == "/c.tsv"
    assert recipe.data.test[0].source == str(current / "d.jsonl")
    assert recipe.parallel.deepspeed == str(current / "mine.json")


@pytest.mark.parametrize("value", ["none", "zero2"])
def test_a_folder_of_that_name_hides_no_deepspeed_configuration(load, value: str, tmp_path: Path, monkeypatch) -> None:
    from .conftest import GOOD

    (tmp_path / value).mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(GOOD, f"parallel.deepspeed={value}", here=True).recipe.parallel.deepspeed == value


@pytest.mark.parametrize("value", ["zero2.json", "ds_configs/zero2.json", "zero2"])
def test_a_shipped_deepspeed_configuration_stays_a_name(load, value: str) -> None:
    from .conftest import GOOD

    assert load(GOOD, f"parallel.deepspeed={value}", here=True).recipe.parallel.deepspeed == "zero2"


def test_presence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert is_present(str(tmp_path / "a.jsonl"))
    assert is_present(str(tmp_path / "*.jsonl"))
    assert is_present("someone/model")
    assert not is_present(str(tmp_path / "b.jsonl"))
    assert not is_present(str(tmp_path / "*.csv"))


@pytest.mark.parametrize(
    ("source", "init", "folder"),
    [
        ("vit", "config", False),
        ("./vit", "config", True),
        ("vit", "pretrained", True),
        ("mine", "config", True),
        ("openai-gpt", "config", False),
    ],
)
def test_a_bare_model_type_wins_over_a_folder_of_its_name(tmp_path, monkeypatch, source, init, folder) -> None:
    for name in ("vit", "mine", "openai-gpt"):
        (tmp_path / name).mkdir()
    (tmp_path / "r.yaml").write_text(
        f"name: a\ntask: sorting\nmodel: {{source: {source}, init: {init}}}\ndata: {{train: b/c}}\n"
    )
    monkeypatch.chdir(tmp_path)
    for sets in ([], [f"model.source={source}"]):
        found = load_recipe(tmp_path / "r.yaml", sets, CARDS, here=False).recipe.model.source
        assert found == (str(tmp_path / source.removeprefix("./")) if folder else source)


def test_links_to_data_keep_their_names(tmp_path) -> None:
    (tmp_path / "0a1b").write_text("text\na\n")
    (tmp_path / "a.csv").symlink_to("0a1b")
    (tmp_path / "r.yaml").write_text("name: a\ntask: sorting\nmodel: {source: some/model}\ndata: {train: ./a.csv}\n")
    assert load_recipe(tmp_path / "r.yaml", (), CARDS).recipe.data.train[0].source == str(tmp_path / "a.csv")
