"""A recipe by name or path, opened against the tasks that there are."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.app.starting import take_adapter_values
from finetune.recipe import shelf
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.tasks import CARDS


def open_recipe(name: str, sets: Sequence[str] = (), *, here: bool = True) -> LoadedRecipe:
    """here: to be carried out on this machine. Raises: UserError, RecipeFaults with every fault at once."""
    return take_adapter_values(load_recipe(shelf.find_recipe(name), sets, CARDS, here=here))
