"""`finetune export`: a checkpoint of a run as a model for `from_pretrained`. Needs neither ranks nor the training data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from finetune.app.model_folder import card_text, save_model
from finetune.app.run_contents import find_checkpoint, portable_plan, run_artifacts, run_recipe
from finetune.errors import UserError
from finetune.models.adapters import merge_adapter
from finetune.recipe.machine import has_cuda
from finetune.tasks import load_task
from finetune.tasks.facts import Facts
from finetune.terminal import print_line
from finetune.tracking.atomic_files import share_modes
from finetune.tracking.figures import figures_of
from finetune.tracking.run import Run
from finetune.training.checkpoint_reader import Checkpoint, CheckpointTensors


def export(run: Path, *, output: Path, checkpoint: str, merge: bool) -> None:
    """Write a run's checkpoint (best, latest, a step's name) to `output`. merge: merge the adapter into its base.

    Raises: UserError if output holds something already, or there is no such checkpoint.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(
            "the folder is not empty", where=str(output), remedy="Give a new folder; nothing was overwritten."
        )
    if not has_cuda():
        os.environ["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed, which transformers imports, warns that it found no GPU
    opened = Run.open(run)
    recipe = run_recipe(opened).recipe
    if merge and recipe.adapter is None:
        raise UserError(
            "the run has no adapter to merge", where=str(run), remedy="Leave out --merge: its model is whole."
        )
    stored = find_checkpoint(opened, checkpoint)
    artifacts, task = run_artifacts(opened, recipe, print_line), load_task(recipe.task)
    torch.manual_seed(recipe.seed)
    model = task.build(portable_plan(opened, recipe), artifacts, Facts())
    put_weights(model, stored)
    card = card_text(opened, recipe, figures_of(opened, stored.step), step=stored.step, merged=merge)
    if merge and recipe.model.init == "pretrained":
        beside = output.with_name(output.name + ".adapter")
        save_model(model, artifacts, recipe, beside, model.state_dict(), card)
        merge_adapter(beside, output)
        _copy_companions(beside, output)
        shutil.rmtree(beside)
        share_modes(output)
    else:
        if merge:  # the base was made from the recipe: there are no files that it could be loaded from
            merged: Any = model
            model, recipe = merged.merge_and_unload(), recipe.model_copy(update={"adapter": None})
        save_model(model, artifacts, recipe, output, model.state_dict(), card)
    print_line(f"model   {output}")


def put_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """A checkpoint's weights and buffers into a model of one process. Raises: UserError if it lacks a trained weight."""
    with CheckpointTensors(checkpoint) as stored, torch.no_grad():
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        if missing := sorted(trained - stored.keys):
            raise UserError(
                f"the checkpoint lacks {len(missing)} of the model's weights, such as {missing[0]}",
                where=str(checkpoint.path),
                remedy="The model or adapter of recipe.yaml has changed since it was written.",
            )
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name in stored.keys & tensors.keys():
            tensors[name].copy_(stored.whole(name))


def _copy_companions(folder: Path, output: Path) -> None:
    """The tokenizer or processor, the artifacts and the card of an adapter's folder beside the merged weights."""
    for file in folder.iterdir():
        belongs = not file.name.startswith("adapter_") and not (output / file.name).exists()
        if belongs and file.suffix in (".json", ".md", ".jinja", ".txt", ".model"):
            shutil.copy2(file, output / file.name)
