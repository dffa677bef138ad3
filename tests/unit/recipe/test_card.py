"""Proves that the smallest card, which recipe/card.py shows to whoever adds a task, is usable; that cards are consistent."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from finetune.recipe import card as module
from finetune.recipe.card import AnswerSpec, BatchSpec, TaskCard
from finetune.recipe.recipe import recipe_type
from finetune.recipe.schema import recipes_schema
from finetune.tasks import CARDS


@pytest.fixture
def smallest() -> TaskCard:
    """The example of the docstring, run as it stands there."""
    text = (module.__doc__ or "").partition("The smallest card:\n")[2]
    names: dict[str, Any] = dict(vars(module))
    exec(textwrap.dedent(text), names)
    card: TaskCard = names["CARD"]
    return card


def test_a_recipe_of_the_smallest_card_is_valid(smallest: TaskCard) -> None:
    values = {"name": "a", "task": smallest.name, "model": {"source": "bert"}, "data": {"train": "a.jsonl"}}
    assert recipe_type(smallest)(**values).task == smallest.name == "sorting"
    assert smallest.name in str(recipes_schema({smallest.name: smallest}))


def test_it_says_only_what_has_no_default(smallest: TaskCard) -> None:
    assert (smallest.batches, smallest.answers) == (BatchSpec(), AnswerSpec())
    assert smallest.model.outputs == ("logits",)
    assert smallest.rows.contents == ("text",)


def test_rows_that_are_asked_need_no_targets(smallest: TaskCard) -> None:
    assert smallest.for_asking().rows.required == (("text",),)


@pytest.mark.parametrize("task", CARDS)
def test_the_parts_of_a_card_agree(task: str) -> None:
    card = CARDS[task]
    rows, metrics, batches = card.rows, card.metrics, card.batches
    named = {role for roles in rows.required for role in roles} | {*rows.targets, *rows.unhashed}
    assert named and named | {rows.class_role} <= {*rows.columns, ""}
    asked = {role for roles in card.for_asking().rows.required for role in roles}
    lines = {rows.line_role, *rows.line_roles[1].values()}
    assert asked and asked | lines <= {*rows.columns, *rows.asked_columns, ""}
    assert metrics.best in metrics.default and set(metrics.default) <= set(metrics.available)
    assert batches.packing in batches.packings and "none" in batches.packings
    assert rows.line_roles[0] in ("", *card.options.model_fields)
    assert rows.several is None or rows.several[0] in card.options.model_fields
    assert card.answers.pieces or not card.answers.merges
