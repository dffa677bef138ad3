"""What is wrong with the data, as far as a quick look tells: before torch is imported or a process started."""

from __future__ import annotations

from finetune.errors import Fault
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe


def check_data(recipe: Recipe, card: TaskCard) -> list[Fault]:
    """Every fault that shows in names, headers and first rows. where is "": the caller knows the recipe's line."""
    return []
