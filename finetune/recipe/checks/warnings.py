"""What a recipe may say, but is rarely intended to."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from finetune.recipe.checks.context import CheckContext
from finetune.recipe.checks.deepspeed import stored_config
from finetune.recipe.deepspeed import outside_writers, rounding_keys

HIGH_RATE = 0.1  # of any optimizer but sgd, whose steps are as long as the gradient


def _holds_weights(source: str) -> bool:
    """Whether a local folder is a run with a model, or holds weights itself."""
    with suppress(OSError, ValueError):  # no name of a file
        return any(any(folder.glob("*.safetensors")) for folder in (Path(source), Path(source, "model")))
    return False


def find_warnings(context: CheckContext) -> list[str]:
    """One sentence, with its file and line, for each setting that is allowed but rarely intended."""
    recipe, place = context.recipe, context.draft.place
    found = []
    if recipe.adapter is not None and recipe.model.init == "config":
        found.append(f"{place(('adapter',))}: an adapter on random weights (model.init: config) trains next to nothing")
    if recipe.model.init == "config" and _holds_weights(recipe.model.source):
        found.append(
            f"{place(('model', 'init'))}: model.init: config draws random weights; those in {recipe.model.source} are not used "
            "(pretrained uses them)"
        )
    training = recipe.training
    if training.learning_rate >= HIGH_RATE and training.optimizer != "sgd":
        found.append(
            f"{place(('training', 'learning_rate'))}: a learning rate of {training.learning_rate:g} is far above what "
            f"{training.optimizer} takes (1e-6 to 1e-2): each step moves every weight by about as much"
        )
    if context.draft.is_written(("evaluation", "best")) and not recipe.data.has_validation:
        found.append(f"{place(('evaluation', 'best'))}: evaluation.best has no effect without validation data")
    if recipe.evaluation.at_start and not recipe.data.has_validation:
        found.append(f"{place(('evaluation', 'at_start'))}: evaluation.at_start has no effect without validation data")
    if recipe.model.trust_remote_code:
        found.append(f"{place(('model', 'trust_remote_code'))}: Python code that comes with the model will be run")
    config = stored_config(recipe) or {}
    if writers := outside_writers(config):
        found.append(
            f"{place(('parallel', 'deepspeed'))}: {recipe.parallel.deepspeed} has DeepSpeed write outside of the run folder: "
            f"{', '.join(writers)}; tracking of the recipe has the same numbers, and more"
        )
    if keys := rounding_keys(config):
        found.append(
            f"{place(('parallel', 'deepspeed'))}: {recipe.parallel.deepspeed} rounds what travels between ranks "
            f"({', '.join(keys)}): the numbers are not those of other engines"
        )
    return found
