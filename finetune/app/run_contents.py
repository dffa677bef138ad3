"""A run folder alone: its recipe, plan, artifacts and checkpoints, without the training data and on any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune.app.kept_files import check_artifacts, check_model_config, read_plan, tell_unknown
from finetune.app.machine import plan_alone
from finetune.app.trust import check_trusted
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError
from finetune.planning.plan import Plan
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.recipe.recipe import Recipe
from finetune.tasks import CARDS, load_task
from finetune.tasks.artifacts import MODEL, TaskArtifacts, has_artifacts, load_artifacts
from finetune.tasks.facts import Facts
from finetune.tracking.retention import removal_remedy
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import Checkpoint
from finetune.training.checkpoint_reader import find_checkpoints, named_checkpoint, open_checkpoint

Notify = Callable[[str], None]
KEPT_SETTINGS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "image_size")


def run_recipe(run: Run, sets: list[str] | None = None) -> LoadedRecipe:
    """The recipe that the run was trained with. Its data files need not exist any more.

    Raises: UserError, RecipeFaults; UserError if it has code run that this command line does not trust.
    """
    loaded = load_recipe(run.recipe_file, sets or [], CARDS, here=False)
    check_trusted(loaded, run.recipe_file)
    return loaded


def run_artifacts(run: Run, recipe: Recipe, notify: Notify) -> TaskArtifacts:
    """The artifacts of the run folder. A run of an earlier version has none: they are made once, from its training data.

    Raises: UserError if they are damaged; for such a run, if its training data is gone.
    """
    card = CARDS[recipe.task]
    if has_artifacts(run.artifacts):
        check_artifacts(run)
        tell_unknown(run, notify)
        return load_artifacts(run.artifacts, card)
    notify("the run has no artifacts/ (an earlier version made it): its training data is read once to make them")
    try:
        tables = open_tables(recipe, card)
    except UserError as error:
        raise UserError(
            f"the run has no artifacts/, and its training data cannot be read: {error.what}",
            where=error.where,
            remedy="An earlier version made this run: bring its training data back once, and run this command again.",
        ) from None
    task = load_task(recipe.task)
    artifacts = task.prepare(plan_alone(recipe, read_plan(run)), tables, Facts())
    artifacts.save(run.artifacts)
    return artifacts


def portable_recipe(run: Run, recipe: Recipe) -> Recipe:
    """The recipe with a model that is built from the run folder's own configuration, where the checkpoints hold all of
    its weights: then `artifacts/model` exists. Frozen weights (under an adapter, too) and a model's own code still come
    from model.source.

    Raises: UserError if that configuration is not the one that was trained.
    """
    check_model_config(run)
    folder = run.artifacts / MODEL
    if recipe.model.trust_remote_code or not (folder / "config.json").is_file():
        return recipe
    changes = {"source": str(folder.resolve()), "init": "config", "new_tokens": [], "config": _stored_settings(folder)}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def _stored_settings(folder: Path) -> dict[str, object]:
    """Settings that would otherwise be taken from the tokenizer, as the trained model has them."""
    from transformers import AutoConfig  # the verbs of a run import this module before they need transformers

    config = AutoConfig.from_pretrained(folder)
    stored = config.to_dict()
    return {name: stored[name] for name in KEPT_SETTINGS if stored.get(name) is not None}


def portable_plan(run: Run, recipe: Recipe) -> Plan:
    """The plan of one process for a model out of the run folder, its training part as it was."""
    return plan_alone(portable_recipe(run, recipe), read_plan(run))


def find_checkpoint(run: Run, name: str) -> Checkpoint:
    """best (latest where nothing was validated), latest, or a name such as step-00000120; digests checked.

    Raises: UserError if there is none or it is damaged.
    """
    folder = checkpoint_folder(run, name)
    try:
        return open_checkpoint(folder)
    except UserError as error:
        others = [path.name for path in find_checkpoints(run.checkpoints) if path.name != folder.name]
        where = error.where if error.where.startswith(str(folder)) else str(folder / error.where)
        other = (
            f"The run also has {', '.join(others)}: name one with --checkpoint." if others else "The run has no other."
        )
        raise UserError(error.what, where=where, remedy=error.remedy or other) from None


def checkpoint_folder(run: Run, name: str) -> Path:
    """The folder of `find_checkpoint`, unread. Raises: UserError if there is none."""
    folder = named_checkpoint(run.checkpoints, name)
    if folder is None and name == "best":
        folder = named_checkpoint(run.checkpoints, "latest")
    if folder is None:
        names = sorted(path.name for path in run.checkpoints.glob("step-*"))
        raise UserError(
            f"the run has no checkpoint {name}",
            where=str(run.checkpoints),
            remedy=removal_remedy(run)
            or (f"The run has {', '.join(names)}." if names else "It was never saved: train it first."),
        )
    return folder
