"""The libraries of a training, imported at one place: before any data exists, and once for all ranks that are forked."""

from __future__ import annotations

import importlib

from finetune.distributed.engines.accelerator import load_deepspeed
from finetune.distributed.late_compilation import compiling_later
from finetune.planning.engine import choose_engine
from finetune.recipe.recipe import Recipe
from finetune.tasks import load_task


def import_libraries(recipe: Recipe) -> None:
    """What a training of this recipe would import later, piece by piece."""
    importlib.import_module("torch._dynamo")  # by torch's optimizers, and by DistributedDataParallel
    with compiling_later():
        load_task(recipe.task)
        importlib.import_module("transformers.modeling_layers")  # by every model of transformers
        if recipe.adapter is not None:
            importlib.import_module("peft")
        if choose_engine(recipe.parallel) == "deepspeed":
            load_deepspeed()
