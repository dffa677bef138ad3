"""Tests that held-out rows depend on the row and the seed only, not on order, other rows or the file format."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.prepare.hold_out import choose, keep_classes, row_hash
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


def test_the_split_of_a_data_set_never_changes(split):
    """Pinned: rows that moved would change the validation data of runs that users resume and compare."""
    _, validation = split(rows(60))
    assert [row["id"] for row in validation] == [5, 11, 14, 15, 18, 21, 28, 37, 42, 44, 46, 54]


def masks(hashes, held, classes):
    mask, names = keep_classes(np.array(hashes, np.uint64), np.array(held, bool), classes)
    return mask.astype(int).tolist(), names


def test_a_class_gets_back_its_row_of_the_largest_hash():
    assert masks([1, 2, 9, 8], [1, 1, 0, 0], ["a", "b", "a", "b"]) == ([1, 1, 0, 0], [])
    assert masks([1, 3, 2, 9], [1, 1, 1, 0], ["a", "b", "b", "a"]) == ([1, 0, 1, 0], ["b"])
    assert masks([1, 3, 3, 9], [1, 1, 1, 0], ["a", "b", "b", "a"]) == ([1, 0, 0, 0], ["b"])  # duplicates stay together
    # one row brings back two classes; a row without a class stays where it is
    assert masks([1, 3, 4, 9], [1, 1, 1, 0], [["a", "b"], ["b", "c"], [], ["a"]]) == ([1, 0, 1, 0], ["b"])


def test_if_every_held_out_row_goes_back_another_is_held_out():
    assert masks([1, 5, 7], [1, 0, 0], ["a", "b", "b"]) == ([0, 1, 0], ["a"])
    with pytest.raises(UserError, match="every row is the only one of its class"):
        masks([1, 5], [1, 0], ["a", "b"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.sets(st.sampled_from("abcde"), max_size=3)), min_size=4, max_size=30))
def test_every_class_is_in_training_and_nothing_else_moves(pairs):
    hashes = np.array([number for number, _ in pairs], np.uint64)
    held = hashes < 20
    try:
        kept, names = keep_classes(hashes, held, [found for _, found in pairs])
    except UserError:
        return
    classes = [found for _, found in pairs]
    assert set().union(*classes) == set().union(*(found for found, out in zip(classes, kept, strict=True) if not out))
    assert kept.any() and not set(hashes[kept].tolist()) & set(hashes[~kept].tolist())
    if not names and held.any():
        assert (kept == held).all()


def test_the_tool_accepts_its_own_split(tmp_path, make_recipe, text_card):
    """Each of 40 classes has few rows, so that some are held out altogether; with moves, from the cache too."""
    from dataclasses import replace

    path, said = tmp_path / "a.jsonl", []
    data = [{"text": f"text {index}", "label": f"class {index % 40}"} for index in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    card, recipe = (
        replace(text_card, rows=replace(text_card.rows, class_role="label")),
        make_recipe(train=str(path), validation_fraction=0.4),
    )
    plain = open_tables(recipe, text_card)
    for _ in range(2):
        tables = open_tables(recipe, card, notify=said.append)
        found = {name: set(table.values("label")) for name, table in tables.items()}
        assert len(found["train"]) == 40 and found["validation"] < found["train"]
    missing = set(plain["validation"].values("label")) - set(plain["train"].values("label"))
    assert len(missing) > 2 and len(plain["validation"]) - len(tables["validation"]) == len(missing)
    assert set(texts(tables["validation"])) < set(texts(plain["validation"]))
    assert said[0] == said[1] and f"{len(missing)} rows went back to train" in said[0]
