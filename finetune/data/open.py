"""From `data:` of a recipe to its splits as tables: sources joined, rows under their roles, validation held out."""

from __future__ import annotations

from collections.abc import Callable

from finetune.data.table import Table
from finetune.errors import UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe


def _silent(text: str) -> None:
    """Tells nobody."""


def open_tables(recipe: Recipe, card: TaskCard, *, tell: Callable[[str], None] = _silent) -> dict[str, Table]:
    """{"train": ..., "validation": ..., "test": ...}, the latter two where the recipe gives them.

    Any rank may call it: what is converted is published in the cache by rename. tell: takes lines of progress.
    Raises: UserError for data that is missing, unreadable or empty, and for bad rows where data.on_bad_row is error.
    """
    raise UserError("no data can be opened yet")
