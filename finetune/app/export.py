"""`finetune export`: a checkpoint of a run as a model for `from_pretrained`. Needs no other process."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune.app.opening import open_recipe
from finetune.app.workers.context import TrainingContext
from finetune.data.sources.tables import open_tables
from finetune.distributed.full_state import consolidate
from finetune.errors import UserError
from finetune.models.adapters import merge_adapter, save_adapter
from finetune.recipe.recipe import Recipe
from finetune.tasks import TASKS
from finetune.tasks.task import Kit
from finetune.tracking.atomic_files import share_modes
from finetune.tracking.card import model_card
from finetune.tracking.figures import figures_of
from finetune.tracking.retention import removal_remedy
from finetune.tracking.run import Run
from finetune.training.checkpoint_reader import Checkpoint, CheckpointTensors, named_checkpoint, open_checkpoint


def export(run: Path, *, output: Path, checkpoint: str, merge: bool) -> None:
    """Write a run's checkpoint (best, latest, a step's name) to `output`. merge: fold the adapter into the base.

    Raises: UserError if output holds something already, or there is no such checkpoint.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(
            "the folder is not empty", where=str(output), remedy="give a new folder; nothing was overwritten"
        )
    opened = Run.open(run)
    recipe = open_recipe(str(opened.recipe_file), []).recipe
    if merge and recipe.adapter is None:
        raise UserError(
            "the run has no adapter to merge", where=str(run), remedy="leave out --merge: its model is whole"
        )
    task = TASKS[recipe.task]
    kit = task.read(recipe, open_tables(recipe, task.card))
    torch.manual_seed(recipe.seed)
    model = task.build(kit)
    found = find_checkpoint(opened, checkpoint)
    put_weights(model, found)
    folder = output.with_name(output.name + ".adapter") if merge else output
    card = card_text(opened, recipe, figures_of(opened, found.step), step=found.step, merged=merge)
    save_model(model, kit, folder, model.state_dict(), card)
    if merge:
        merge_adapter(folder, output)
        for file in folder.iterdir():  # tokenizer or processor, and the card
            belongs = not file.name.startswith("adapter_") and not (output / file.name).exists()
            if belongs and file.suffix in (".json", ".md", ".jinja", ".txt", ".model"):
                shutil.copy2(file, output / file.name)
        shutil.rmtree(folder)
        share_modes(output)
    print(f"model   {output}", flush=True)


def find_checkpoint(run: Run, name: str) -> Checkpoint:
    """best (latest where nothing was validated), latest, or a name such as step-00000120; digests checked."""
    folder = named_checkpoint(run.checkpoints, name)
    if folder is None and name == "best":
        folder = named_checkpoint(run.checkpoints, "latest")
    if folder is None:
        there = sorted(path.name for path in run.checkpoints.glob("step-*"))
        raise UserError(
            f"the run has no checkpoint {name}",
            where=str(run.checkpoints),
            remedy=removal_remedy(run)
            or (f"The run has {', '.join(there)}." if there else "It was never saved: train it first."),
        )
    return open_checkpoint(folder)


def put_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """A checkpoint's weights and buffers into a model of one process."""
    with CheckpointTensors(checkpoint) as stored, torch.no_grad():
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name in stored.keys & tensors.keys():
            tensors[name].copy_(stored.whole(name))


def write_model(context: TrainingContext, run: Run, folder: Path, *, figures: Mapping[str, float], step: int) -> None:
    """The engine's weights as `folder`, written beside and renamed. All ranks call it.

    step, figures: of these weights, for the model card.
    """
    state = consolidate(context.engine, trainable_only=context.kit.recipe.adapter is not None)
    if state is None:
        context.session.wait()
        return
    beside = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(beside, ignore_errors=True)
    card = card_text(run, context.kit.recipe, figures, step=step)
    save_model(context.engine.module, context.kit, beside, state, card)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    context.session.wait()


def save_model(model: Any, kit: Kit, folder: Path, state: Mapping[str, torch.Tensor], card: str) -> None:
    """Safetensors, configuration, tokenizer or processor, model card. One process."""
    if kit.recipe.adapter is not None:
        save_adapter(model, folder, state_dict=dict(state))
    else:
        model.save_pretrained(folder, state_dict=dict(state))
    if kit.processor is not None:
        kit.processor.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    share_modes(folder)


def card_text(run: Run, recipe: Recipe, figures: Mapping[str, float], *, step: int, merged: bool = False) -> str:
    """The model card of the weights of `step`."""
    return model_card(recipe, figures, facts=run.read().get("facts", {}), step=step, merged=merged)
