"""What the recipe of a run folder, which may be a stranger's, may have done on this machine. No torch here."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import UserError
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.trust import OPTION, is_trusted

_OF_A_RUN = ("run.json", "plan.json", "checkpoints", "artifacts", "metrics.jsonl")  # beside the recipe of a run


def is_of_a_run(file: Path) -> bool:
    """Whether a recipe lies in a run folder: a training wrote it, and perhaps not here."""
    return any((file.parent / name).exists() for name in _OF_A_RUN)


def check_trusted(loaded: LoadedRecipe, file: Path) -> None:
    """Raises: UserError if the recipe of a run folder has code run that comes with the model, unless this command line asks
    for it.
    """
    asked = loaded.origins.get("model.trust_remote_code", "").startswith("--set")
    if loaded.recipe.model.trust_remote_code and not asked and not is_trusted():
        raise UserError(
            "the recipe of the run folder has Python code run that comes with its model (model.trust_remote_code)",
            where=str(file),
            remedy=f"If you trust the run and its model ({loaded.recipe.model.source}), add {OPTION} to this command.",
        )
