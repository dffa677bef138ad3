"""A recipe by name or path, opened against the tasks that there are."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.app.starting import take_adapter_values
from finetune.app.trust import check_trusted, is_of_a_run
from finetune.recipe import shelf
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.tasks import CARDS


def open_recipe(name: str, sets: Sequence[str] = (), *, here: bool = True) -> LoadedRecipe:
    """here: to be carried out on this machine.

    Raises: UserError, RecipeFaults with every fault at once; UserError for the recipe of a run folder that has code run
    which this command line does not trust.
    """
    path = shelf.find_recipe(name)
    loaded = load_recipe(path, sets, CARDS, here=here)
    if is_of_a_run(path):
        check_trusted(loaded, path)
    return take_adapter_values(loaded)
