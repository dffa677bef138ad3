"""The checks of a recipe that look at its data and model: with its errors, before a process is started. No torch here."""

from __future__ import annotations

from dataclasses import replace

from finetune.data.sources.preflight import check_data
from finetune.errors import Fault, RecipeFaults
from finetune.planning.tensor import KEY, check_model
from finetune.recipe.load import LoadedRecipe
from finetune.tasks import CARDS


def check_recipe(loaded: LoadedRecipe) -> None:
    """What a quick look at the data tells, and at the model where it is to be sliced.

    Raises: RecipeFaults with the lines of the recipe; UserError for a model that cannot be sliced this way.
    """
    recipe = loaded.recipe
    faults = check_data(recipe, CARDS[recipe.task])
    if faults:
        raise RecipeFaults([_placed(fault, loaded) for fault in faults])
    if recipe.parallel.tensor > 1:
        from finetune.models.config import load_config  # transformers: a second that other recipes need not wait for

        check_model(load_config(recipe.model), recipe.parallel.tensor, where=loaded.origins.get(KEY, KEY))


def _placed(fault: Fault, loaded: LoadedRecipe) -> Fault:
    """The fault with its key as the recipe has it, and the line of that, or of the nearest section around it."""
    where, key = loaded.locate(fault.key)
    return replace(fault, where=fault.where or where, key=key)
