"""Proves that the JSON Schema for editors accepts what loads and refuses what does not."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from finetune.recipe.recipe import recipe_type
from finetune.recipe.schema import (
    all_keys,
    describe_allowed,
    description_at,
    nodes_at,
    recipes_schema,
    schema_of,
)

from .conftest import CARDS

SMALL: dict[str, Any] = {"name": "a", "task": "sorting", "model": {"source": "m"}, "data": {"train": "d"}}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = recipes_schema(CARDS)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"data": {"train": ["a", {"source": "b", "limit": 3}], "validation": {"source": "c"}}},
        {"task": "writing", "options": {"template": "x"}},
        {"options": {"max_length": 3}},
        {"training": {"early_stopping": {"patience": 1}, "betas": [0.9, 0.95]}, "parallel": {"processes": "auto"}},
        {"adapter": {"rank": 4, "targets": ["q_proj"]}},
        {"model": {"source": "m", "batch_norm": "synchronised"}},
    ],
)
def test_good_recipes_are_valid(validator, change: dict[str, Any]) -> None:
    recipe = SMALL | change
    validator.validate(recipe)
    assert recipe_type(CARDS[recipe["task"]]).model_validate(recipe)


@pytest.mark.parametrize(
    "change",
    [
        {"task": "other"},
        {"options": {"template": "x"}},
        {"epochs": 3},
        {"training": {"epochs": 0}},
        {"training": {"precision": "fp8"}},
        {"name": "a name"},
        {"data": {}},
        {"data": {"train": [{"limit": 3}]}},
        {"parallel": {"processes": 0}},
        {"evaluation": {"every": "day"}},
    ],
)
def test_bad_recipes_are_not(validator, change: dict[str, Any]) -> None:
    recipe = SMALL | change
    assert not validator.is_valid(recipe)
    if recipe["task"] in CARDS:
        with pytest.raises(ValueError):
            recipe_type(CARDS[recipe["task"]]).model_validate(recipe)


def test_every_key_has_a_description() -> None:
    schema = schema_of(recipe_type(CARDS["sorting"]))
    keys = all_keys(schema)
    assert len(keys) > 60
    assert [key for key in keys if not description_at(schema, key)] == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("training", "epochs"), "a whole number of at least 1 and of at most 1,000,000, or empty"),
        (("training", "label_smoothing"), "a number of at least 0 and below 1"),
        (("data", "train", 0, "limit"), "a whole number of at least 1, or empty"),
        (("data", "columns", "text"), "text"),
        (("adapter", "targets"), "a list of text, or all-linear"),
        (("model", "trust_remote_code"), "true or false"),
        (("training", "betas", 0), "a number of at least 0 and below 1"),
        (("model", "batch_norm"), "auto, synchronized, local, frozen"),
    ],
)
def test_what_is_allowed_in_words(path: tuple[str | int, ...], words: str) -> None:
    assert describe_allowed(nodes_at(schema_of(recipe_type(CARDS["sorting"])), path)) == words


@pytest.mark.parametrize("spelling", ["synchronized", "synchronised"])
def test_both_spellings_of_a_value_are_read_and_one_is_written(spelling: str) -> None:
    kind = recipe_type(CARDS["sorting"])
    recipe = kind.model_validate(SMALL | {"model": {"source": "m", "batch_norm": spelling}})
    assert recipe.model.batch_norm == "synchronized"
    assert recipe == kind.model_validate(recipe.model_dump(mode="json"))
