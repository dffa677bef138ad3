"""A recipe resolved on this machine. Every rank makes the same plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from finetune.app.starting import start_model
from finetune.distributed.late_compilation import compiling_later
from finetune.distributed.quick_imports import quick_imports
from finetune.models.config import load_config
from finetune.models.device import describe_unused_gpu, uses_cuda
from finetune.models.kernels import liger_types
from finetune.models.load import model_class
from finetune.planning.plan import Plan
from finetune.planning.resolve import Machine, resolve, resolve_training, weights_dtype
from finetune.planning.stored import StoredPlan
from finetune.recipe.parallel import ParallelSection
from finetune.recipe.recipe import Recipe
from finetune.tasks import CARDS, load_task
from finetune.terminal import phase


def plan_here(recipe: Recipe, ranks: int, stored: StoredPlan | None = None, *, builds: bool = True) -> Plan:
    """The plan on this machine. stored: of a run that is resumed, whose training part is kept. builds: a model is built by
    it; where none is, the library of fused layers is not imported unless the recipe names it.

    Raises: UserError for what cannot be trained this way.
    """
    recipe, start = start_model(recipe)
    cuda, card, config = uses_cuda(), CARDS[recipe.task], load_config(recipe.model)
    tf32 = cuda and recipe.training.precision == "tf32" and torch.cuda.get_device_capability() >= (8, 0)
    bf16 = cuda and torch.cuda.is_bf16_supported()
    known: dict[str, Any] = {
        "machine": Machine(ranks, "cuda" if cuda else "cpu", bf16, _liger_types(recipe, config, builds), tf32),
        "config": config,
        "model_class": model_class(card.model.auto_class, recipe.model, config),
    }
    resolved = resolve_training(recipe, card, **known)
    kept = stored.over(resolved) if stored else None
    plan = resolve(recipe, card, **known, kept=kept, zero_settings=_zero_settings(recipe, config))
    notes = [describe_unused_gpu(), start, stored.differences(plan, resolved) if stored else ""]
    return replace(plan, notes=(*plan.notes, *filter(None, notes)))


def plan_alone(recipe: Recipe, stored: StoredPlan | None = None, *, builds: bool = True) -> Plan:
    """The plan of one process that holds the whole model, in the dtype that the recipe's engine would hold it in. builds: as
    for `plan_here`.
    """
    recipe = start_model(recipe)[0]
    parallel = ParallelSection(deepspeed="none", micro_batch=recipe.parallel.micro_batch)
    plan = plan_here(recipe.model_copy(update={"parallel": parallel}), 1, stored, builds=builds)
    machine = replace(
        plan.machine, weights_dtype=weights_dtype(recipe, CARDS[recipe.task], plan.precision, plan.device)
    )
    return replace(plan, recipe=recipe, machine=machine)


def _liger_types(recipe: Recipe, config: Any, builds: bool) -> frozenset[str] | None:
    """Of the library, which takes seconds to import: only for models of the kind that it knows, which have an RMSNorm."""
    asked = recipe.model.kernels
    has_norm = hasattr(getattr(config, "text_config", config), "rms_norm_eps")
    if asked == "none" or (asked != "liger" and not (builds and has_norm)):
        return None
    with phase("importing liger-kernel", lambda line: None), quick_imports(), compiling_later():
        return liger_types()


def _zero_settings(recipe: Recipe, config: Any) -> dict[str, Any]:
    """What DeepSpeed's `zero_optimization` must say for the model of `config`, whatever its file says; {} for most.

    A task that knows such models has a method `zero_settings(config)`.
    """
    zero_settings = getattr(load_task(recipe.task), "zero_settings", None)
    return zero_settings(config) if zero_settings is not None else {}
