"""Proves that rows of other splits which are in train are told with their number and places, and that held-out rows are not."""

import json
from pathlib import Path

import pytest
from PIL import Image

from finetune.data.sources.shared_rows import shared_rows
from finetune.data.sources.tables import open_tables
from finetune.tasks import CARDS


def write(path: Path, texts: str, label: str = "a") -> dict[str, str]:
    path.write_text("".join(json.dumps({"text": text, "label": label, "number": path.name}) + "\n" for text in texts))
    return {"source": str(path)}


def lines(recipe, card) -> list[str]:
    found = list(shared_rows(open_tables(recipe, card), card))
    assert all(one.line.startswith(f"{one.split}: {one.count} are in train as well") for one in found)
    return [one.line for one in found]


def test_rows_of_validation_and_test_that_are_in_train_are_told_whatever_their_label(
    tmp_path, make_recipe, text_card
) -> None:
    train, new = write(tmp_path / "train.jsonl", "abcde"), write(tmp_path / "new.jsonl", "xyz")
    old = write(tmp_path / "old.jsonl", "xdyb", label="b")
    (line,) = lines(make_recipe(train=train, validation=old, test=new), text_card)
    assert line.startswith("validation: 2 of 4 rows are in train as well")
    assert f"{tmp_path / 'old.jsonl'}:2, in train {tmp_path / 'train.jsonl'}:4;" in line
    (line,) = lines(make_recipe(train=train, validation=new, test=old), text_card)
    assert line.startswith("test: 2 of 4 rows")
    assert not lines(make_recipe(train=train, validation=new), text_card)


def test_rows_held_out_of_train_are_not_looked_at_but_those_of_test_are(tmp_path, make_recipe, text_card) -> None:
    train = write(tmp_path / "train.jsonl", "aabbccddeeffgghh")
    recipe = make_recipe(train=train, validation_fraction=0.3, test=write(tmp_path / "test.jsonl", "abcdefgh"))
    (line,) = lines(recipe, text_card)
    assert line.startswith("test: ") and not line.startswith("test: 8 of")  # those that were held out are not in train


@pytest.mark.parametrize("same", [True, False])
def test_pictures_are_compared_by_what_they_show(same, tmp_path, make_recipe) -> None:
    for split, levels in (("train", (10, 20)), ("other", (20 if same else 30, 40))):
        for name, level in zip(("a", "b"), levels, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), level).save(tmp_path / split / name / f"{split}.png")
    recipe = make_recipe(train={"source": str(tmp_path / "train")}, validation={"source": str(tmp_path / "other")})
    found = lines(recipe, CARDS["image_classification"])
    assert len(found) == same and all(line.startswith("validation: 1 of 2 rows are in train") for line in found), found
