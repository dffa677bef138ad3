"""The model that `finetune verify` trains: the recipe's architecture, as small as it still trains, without dropout."""

from __future__ import annotations

from typing import Any

from finetune.app.machine import plan_alone
from finetune.app.workers.preparing import ready
from finetune.models.config import load_config
from finetune.models.shrink import shrunken, without_dropout
from finetune.recipe.recipe import Recipe
from finetune.tasks import load_task
from finetune.tasks.facts import Facts
from finetune.tasks.prepared_task import PreparedTask
from finetune.terminal import print_line


def choose_model(recipe: Recipe, *, full: bool) -> dict[str, Any]:
    """`model:` with dropout off and, unless full, the smallest model of the architecture that trains."""
    config = load_config(recipe.model).to_dict()
    off = without_dropout(config)
    if recipe.model.quantization != "none":
        print_line("the base is not quantized here: its rounding is far coarser than what is compared")
    whole = {"quantization": "none"}
    if full:
        return {**whole, "config": {**recipe.model.config, **off}}
    source = recipe.model.source
    for smaller in shrunken(config):
        changes: dict[str, Any] = {**whole, "config": {**recipe.model.config, **smaller, **off}}
        if smaller and recipe.model.init == "pretrained":
            changes |= {"init": "config", "tokenizer": recipe.model.tokenizer or source}
            changes |= {"processor": recipe.model.processor or source}
        if not smaller or _trains(with_model(recipe, changes)):
            return changes
    raise AssertionError("the last candidate changes nothing")


def _trains(recipe: Recipe) -> bool:
    """Whether one example goes forward and back. An architecture may refuse sizes in its own ways."""
    try:
        prepared = prepare_alone(recipe)
        task, artifacts, train = prepared.task, prepared.artifacts, prepared.datasets["train"]
        model = task.build(prepared.plan, artifacts, Facts())
        batch = task.collate(artifacts, [train[0], train[1]])
        task.loss_sum(artifacts, task.forward(model, batch), batch).backward()
    except Exception as error:
        print_line(
            f"not shrunk this far ({type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''})"
        )
        return False
    return True


def with_model(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other values under `model:`."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def prepare_alone(recipe: Recipe) -> PreparedTask:
    """The task with its plan for one process, its artifacts and data."""
    data = ready(recipe)
    return PreparedTask(load_task(recipe.task), plan_alone(recipe), data.artifacts, data.datasets)
