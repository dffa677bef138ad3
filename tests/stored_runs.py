"""Run folders without training: what a run keeps of a model, written for a model that was only built."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from finetune.app.kept_files import record_kept_files
from finetune.recipe.identity import training_values
from finetune.recipe.load import load_recipe
from finetune.tasks import CARDS
from finetune.tasks.artifacts import MODEL
from finetune.tracking.atomic_files import publish_json
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import MANIFEST, Manifest, checkpoint_name
from tests.prepared import Prepared


def store_run(prepared: Prepared, model: Any, folder: Path, *, steps: tuple[int, ...] = (1,), best: int = 0) -> Path:
    """A run folder with artifacts and checkpoints of `model` (of an adapter its trained weights alone).

    best: the step of the best checkpoint; 0: nothing was validated.
    """
    recipe = prepared.plan.recipe
    run = Run.create(recipe, folder, path=folder / "run")
    publish_json(run.plan_file, prepared.plan.to_dict())
    prepared.artifacts.save(run.artifacts)
    if recipe.adapter is None:
        model.config.save_pretrained(run.artifacts / MODEL)
    record_kept_files(run)
    for step in steps:
        store_checkpoint(run, model, step)
    (run.checkpoints / "latest").write_text(checkpoint_name(max(steps)) + "\n")
    if best:
        (run.checkpoints / "best").write_text(checkpoint_name(best) + "\n")
    return run.path


def store_checkpoint(run: Run, model: Any, step: int) -> None:
    """The weights and buffers of `model` as a checkpoint of one rank."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    tensors = {**trained, **{name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}}
    path = run.checkpoints / checkpoint_name(step)
    path.mkdir()
    file = path / "state-00000-of-00001.safetensors"
    save_file({f"{name}@0": tensor.detach().reshape(-1).clone() for name, tensor in tensors.items()}, file)
    content = file.read_bytes()
    manifest = Manifest(
        step=step,
        loop={},
        scalars={},
        files={file.name: (len(content), hashlib.sha256(content).hexdigest())},
        shapes={name: list(tensor.shape) for name, tensor in tensors.items()},
        training=training_values(load_recipe(run.recipe_file, [], CARDS, here=False).recipe),
    )
    (path / MANIFEST).write_text(manifest.to_json())


def trained_like(model: Any) -> Any:
    """The same model with other weights, as after a training."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
    return model.eval()
