"""Proves that roles are known in one place: each is of some task, and what readers of rows know follows from its entry."""

from __future__ import annotations

import json

import pytest

from finetune.recipe.roles import IMAGES, LABELS, ROLES, TEXTS, Role, example_row, role_of
from finetune.tasks import CARDS


def test_every_entry_is_a_role_of_a_task() -> None:
    known = {role for card in CARDS.values() for role in (*card.rows.columns, *card.rows.asked_columns)}
    assert set(ROLES) - known == {"functions"} and len(ROLES) > 15


def test_a_name_leads_to_a_role_once() -> None:
    for name, role in ROLES.items():
        names = (name, *role.aliases, *role.guesses)
        assert len(set(names)) == len(names), name


def test_kinds_follow_from_the_entries() -> None:
    assert {*TEXTS, *IMAGES, *LABELS} == {name for name, role in ROLES.items() if role.kind != "value"}
    assert "text" in TEXTS and "image" in IMAGES and "label" in LABELS
    assert role_of("mask of a pixel") == Role() and role_of("mask of a pixel").kind == "value"


@pytest.mark.parametrize("task", CARDS)
def test_rows_of_a_task_are_compared_without_labels(task: str) -> None:
    rows = CARDS[task].rows
    assert rows.contents and not set(rows.contents) & set(LABELS)
    assert bool(rows.image_role) == CARDS[task].batches.decodes
    assert rows.class_role in ("", *LABELS)


@pytest.mark.parametrize("task", [name for name, card in CARDS.items() if not card.rows.image_role])
def test_an_example_is_a_row_that_the_task_may_be_asked(task: str) -> None:
    rows = CARDS[task].for_asking().rows
    row = example_row(rows.columns, rows.line_role)
    assert len(row) == 1 and set(row) <= set(rows.columns) and json.loads(json.dumps(row)) == row
    assert rows.line_role not in ROLES or ROLES[rows.line_role].example is None or set(row) == {rows.line_role}


def test_without_a_role_that_has_an_example_there_is_no_row() -> None:
    assert example_row(["image", "label", "unknown"]) == {}
