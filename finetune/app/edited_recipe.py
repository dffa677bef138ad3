"""Whether a checkpoint was trained by a recipe: its manifest keeps the values that name the training. No torch."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import UserError
from finetune.models.adapter_source import adapter_of
from finetune.recipe.identity import list_differences, training_differences
from finetune.recipe.recipe import Recipe
from finetune.training.checkpoint_manifest import Manifest


def refuse_edited_recipe(checkpoint: Path, manifest: Manifest, recipe: Recipe) -> None:
    """Raises: UserError if the checkpoint names another training: recipe.yaml of its run was edited, or it is elsewhere."""
    if differences := edited_keys(manifest, recipe):
        raise UserError(
            f"the checkpoint was trained with another recipe:{list_differences(differences)}",
            where=str(checkpoint),
            remedy="Bring recipe.yaml of the run back as it was, or train the changed recipe from model.source.",
        )


def edited_keys(manifest: Manifest, recipe: Recipe) -> list[str]:
    """Keys that name the training in which `recipe` is not the recipe of the checkpoint; [] for one of the first design.

    Where an adapter is merged before the training, the checkpoint names the merged model, which is this machine's.
    """
    if not manifest.training:
        return []
    training = manifest.training
    if _merges(recipe):
        named = recipe.model.model_dump(mode="json")
        training = {**training, "model": {**training["model"], **{key: named[key] for key in ("source", "revision")}}}
    return training_differences(training, recipe)


def _merges(recipe: Recipe) -> bool:
    """Whether model.source is an adapter that is merged; also one whose base is no longer there."""
    continues = recipe.adapter is not None and recipe.adapter.start == "continue"
    if continues or not Path(recipe.model.source).is_dir():
        return False
    try:
        return adapter_of(recipe.model) is not None
    except UserError:
        return True
