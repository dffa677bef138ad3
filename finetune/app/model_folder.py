"""A model as a folder that transformers' from_pretrained loads (adapters: peft's), with what a stranger needs to use it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune.distributed.engines.engine import Engine
from finetune.models.adapters import save_adapter
from finetune.recipe.recipe import Recipe
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tracking.atomic_files import disk_errors, share_modes
from finetune.tracking.card import model_card
from finetune.tracking.run import Run


def write_model(
    engine: Engine,
    artifacts: TaskArtifacts,
    run: Run,
    recipe: Recipe,
    folder: Path,
    *,
    figures: Mapping[str, float],
    step: int,
) -> None:
    """The engine's weights as `folder`, written beside and renamed. All ranks call it.

    step, figures: of these weights, for the model card.
    """
    state = engine.full_state_dict(trainable_only=recipe.adapter is not None)
    if state is not None:
        beside = folder.with_name(folder.name + ".incomplete")
        shutil.rmtree(beside, ignore_errors=True)
        card = card_text(run, recipe, figures, step=step)
        try:
            with disk_errors(folder):
                save_model(engine.module, artifacts, recipe, beside, state, card)
                shutil.rmtree(folder, ignore_errors=True)
                beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    engine.session.wait()


def save_model(
    model: Any,
    artifacts: TaskArtifacts,
    recipe: Recipe,
    folder: Path,
    state: Mapping[str, torch.Tensor],
    card: str,
) -> None:
    """Safetensors, configuration, tokenizer or processor, task artifacts, model card. One process."""
    if recipe.adapter is not None:
        save_adapter(model, folder, state_dict=dict(state))
    else:
        model.save_pretrained(folder, state_dict=dict(state))
    artifacts.save(folder, processor="")
    (folder / "README.md").write_text(card, encoding="utf-8")
    share_modes(folder)


def card_text(run: Run, recipe: Recipe, figures: Mapping[str, float], *, step: int, merged: bool = False) -> str:
    """The model card of the weights of `step`."""
    return model_card(recipe, figures, facts=run.read().get("facts", {}), step=step, merged=merged)
