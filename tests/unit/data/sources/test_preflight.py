"""Tests that faults of the data are reported together, by key of the recipe, quickly and without heavy imports."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.sources.preflight import check_data


@pytest.fixture
def data(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"sentense": "s", "label": 1}) + "\n")
    pq.write_table(pa.Table.from_pylist([{"sentence": "s", "lable": 1}]), tmp_path / "b.parquet")
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "good.tsv").write_text("text\tlabel\na\t1\n")
    return tmp_path


def described(faults):
    return {fault.key: (fault.message, fault.value, fault.allowed, fault.nearest) for fault in faults}


def test_good_data_has_no_fault(data, make_recipe, text_card):
    sets = {"train": str(data / "good.tsv"), "validation": "builtin:docstrings", "test": "owner/name"}
    assert check_data(make_recipe(**sets), text_card) == []


def test_all_faults_at_once(data, make_recipe, text_card):
    recipe = make_recipe(
        train=[str(data / "a.jsonl"), {"source": str(data / "b.parquet"), "columns": {"label": "label", "txt": "x"}}],
        validation=[str(data / "empty.csv"), str(data / "god.tsv"), "builtin:docstring"],
        test={"source": "builtin:docstrings", "split": "valid"},
        columns={"text": "sentence"},
    )
    faults = described(check_data(recipe, text_card))
    assert list(faults) == [
        "data.columns.text", "data.train.1.columns.txt", "data.train.1.columns.label", "data.validation.0.source",
        "data.validation.1.source", "data.validation.2.source", "data.test.0.split",
    ]  # fmt: skip
    message, *rest = faults["data.columns.text"]
    assert message.endswith("a.jsonl: the data has no column 'sentence'")
    assert rest == ["sentence", "sentense, label", "sentense"]
    assert faults["data.train.1.columns.txt"][2:] == ("text, text_pair, label", "text")
    assert faults["data.train.1.columns.label"][1:] == ("label", "sentence, lable", "lable")
    assert "is empty" in faults["data.validation.0.source"][0]
    assert (
        "no such file" in faults["data.validation.1.source"][0] and "good.tsv" in faults["data.validation.1.source"][0]
    )
    assert faults["data.validation.2.source"][2:] == (
        "builtin:docstrings, builtin:digits, builtin:shapes",
        "builtin:docstrings",
    )
    assert faults["data.test.0.split"][1:] == ("valid", "train, validation", "validation")


def test_a_required_role_without_a_column(data, make_recipe, text_card):
    (data / "z.jsonl").write_text((data / "a.jsonl").read_text())
    recipe = make_recipe(train=str(data / "a.jsonl"), validation=str(data / "z.jsonl"))
    (fault,) = check_data(recipe, text_card)  # reported once, for the first file
    assert fault.key == "data.columns.text" and "a.jsonl: " in fault.message and "no column for text" in fault.message
    assert fault.allowed == "sentense, label" and fault.value == ""


@pytest.mark.parametrize("content", [b"\xff\xfet\0", b"{oops\n", b"[1]\n"])
def test_a_file_that_does_not_match_its_extension(tmp_path, make_recipe, text_card, content):
    (tmp_path / "x.jsonl").write_bytes(content)
    (fault,) = check_data(make_recipe(train=str(tmp_path / "x.jsonl")), text_card)
    assert fault.key == "data.train.0.source" and "x.jsonl:1" in fault.message


def test_it_is_quick_on_a_large_file_and_imports_nothing_heavy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps({"text": "x" * 100, "label": 1}) + "\n") * 300_000)
    script = """
        import sys, time
        from finetune.data.sources.preflight import check_data
        from tests.unit.data.conftest import TEXT as card
        from finetune.recipe.recipe import Recipe
        recipe = Recipe.model_validate({"name": "x", "task": "t", "model": {}, "data": {"train": sys.argv[1]}})
        started = time.process_time()
        assert check_data(recipe, card) == []
        heavy = {"torch", "transformers", "datasets", "numpy", "pyarrow", "PIL"} & set(sys.modules)
        print(time.process_time() - started, *heavy)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    seconds, *heavy = done.stdout.split()
    assert heavy == [] and float(seconds) < 0.2


def test_a_coco_file_with_another_name_is_reported(tmp_path, make_recipe, text_card):
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    (fault, *_) = check_data(make_recipe(train=str(tmp_path / "a.json")), text_card)
    assert "this is a COCO file; set the source's `format: coco`" in fault.message and not fault.nearest


def test_what_a_column_means_and_the_values_inside_of_others_are_named(tmp_path, make_recipe, text_card):
    (tmp_path / "a.jsonl").write_text(json.dumps({"label": 1, "translation": {"de": "a", "en": "b"}}) + "\n")
    hints = {"other": "no", "label": "It says what is there"}
    card = replace(text_card, rows=replace(text_card.rows, column_hints=hints))
    (fault,) = check_data(make_recipe(train=str(tmp_path / "a.jsonl")), card)
    assert fault.message.endswith("map it: data.columns: {text: <column>}. It says what is there")
    assert fault.allowed == "label, translation, translation.de, translation.en"


def test_lists_in_place_of_objects_are_reported(tmp_path, make_recipe, text_card):
    talk = [{"role": "user", "content": "Hi"}]
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(talk)}\n{json.dumps(talk)}\n")
    (fault,) = check_data(make_recipe(train=str(tmp_path / "a.jsonl")), text_card)
    assert 'if it is a conversation, write {"messages": [...]}' in fault.message and "format: json" not in fault.message
