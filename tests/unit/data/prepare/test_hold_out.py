"""Tests that held-out rows depend on the row and the seed only, not on order, other rows or the file format."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.prepare.hold_out import choose, row_hash
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError

ROLES = ("text", "label")


def texts(table):
    return [row["text"] for row in table]


def rows(count):
    return [{"text": f"text {index}", "label": index % 2, "id": index} for index in range(count)]


@pytest.fixture
def split(tmp_path, make_recipe, text_card):
    def split(rows, fraction=0.2, name="a.jsonl", **more):
        path = tmp_path / name
        if name.endswith("csv"):
            lines = ["id,text,label", *(f"{row['id']},{row['text']},{row['label']}" for row in rows)]
            path.write_text("\n".join(lines))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tables = open_tables(make_recipe(train=str(path), validation_fraction=fraction, **more), text_card)
        return tables["train"], tables["validation"]

    return split


def test_every_row_is_in_one_split_and_the_fraction_is_right(split):
    train, validation = split(rows(2000))
    assert sorted(texts(train) + texts(validation)) == sorted(row["text"] for row in rows(2000))
    assert 0.17 < len(validation) / 2000 < 0.23
    assert [train.place(i).split(":")[1] for i in range(3)] == [
        str(int(text.split()[1]) + 1) for text in texts(train)[:3]
    ]
    assert list(validation.values("label")) == [row["label"] for row in validation]


def test_order_additions_and_format_do_not_matter(split):
    first = set(texts(split(rows(300))[1]))
    shuffled = rows(300)
    random.Random(0).shuffle(shuffled)
    assert set(texts(split(shuffled, name="b.jsonl")[1])) == first
    assert set(texts(split(rows(600), name="c.jsonl")[1])) & {row["text"] for row in rows(300)} == first
    assert set(texts(split(rows(300), name="d.csv")[1])) == first


def test_the_seed_matters(split):
    assert set(texts(split(rows(300))[1])) != set(texts(split(rows(300), seed=18)[1]))


def test_duplicates_stay_together_even_if_numbered(split):
    train, validation = split([row | {"id": copy * 100 + row["id"]} for copy in range(3) for row in rows(100)])
    assert len(validation) % 3 == 0 and not set(texts(train)) & set(texts(validation))


def test_a_limit_is_taken_before_the_split(split):
    train, validation = split(rows(500), limit=100)
    assert {int(text.split()[1]) for text in texts(train) + texts(validation)} == set(range(100))
    assert 0 < len(validation) < 50


def test_two_rows_are_enough_but_one_is_not(split):
    train, validation = split(rows(2), fraction=0.001)
    assert len(train) == len(validation) == 1
    train, validation = split(rows(2), fraction=0.999, name="b.jsonl")
    assert len(train) == len(validation) == 1
    for same in (rows(1), rows(1) * 3):
        with pytest.raises(UserError, match="no validation rows"):
            split(same, name="c.jsonl")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=30), st.floats(0.0001, 0.9999))
def test_both_splits_have_rows_and_equal_hashes_stay_together(hashes, fraction):
    array = np.array(hashes, np.uint64)
    if len(set(hashes)) == 1:
        with pytest.raises(UserError):
            choose(array, fraction)
        return
    held = choose(array, fraction)
    assert held.any() and not held.all()
    assert not set(array[held].tolist()) & set(array[~held].tolist())


def test_the_hash_of_a_row_never_changes():
    """Literal values: any other value would move rows between the splits of runs that users resume and compare."""
    assert row_hash({"text": "a", "label": 1}, ROLES, 17) == row_hash({"label": "1", "text": "a", "id": 9}, ROLES, 17)
    assert row_hash({"text": "a", "label": 1}, ROLES, 17) == 3_608_673_194_882_058_649
    assert row_hash({"other": [1.0, None, True]}, ROLES, 0) != row_hash({"other": [1.0, None, False]}, ROLES, 0)


def test_an_image_is_hashed_by_content_not_by_name(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"pixels")
    (tmp_path / "c.png").write_bytes(b"others")
    one, two, three = (row_hash({"image": str(tmp_path / name)}, ("image",), 1) for name in ("a.png", "b.png", "c.png"))
    assert one == two != three
    packed = [row_hash({"image": {"bytes": b"pixels", "path": name}}, ("image",), 1) for name in "xy"]
    assert packed[0] == packed[1]
