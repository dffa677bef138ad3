"""What a run was made from and what came of it, as W&B artifacts: the data, the base model, the trained model.

Artifacts name their content by digest and refer to files instead of uploading them. Offline they are recorded and reach the
server with `wandb sync`; that a run *used* data or a base model can only be recorded online, where the server knows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.recipe.recipe import Recipe
from finetune.recipe.secrets import mask
from finetune.tracking.atomic_files import plain
from finetune.tracking.run import Run, shown

MAX_FIGURES = 50
OFFLINE_LACKS = "that this run used its data and base model: W&B records that online only"


def record_inputs(wandb: Any, wandb_run: Any, run: Run, recipe: Recipe) -> None:
    """The data of each split and the base model: used by this run where the server can say so. Offline they are artifacts of
    the run, and run.json says what W&B lacks.
    """
    data = run.read().get("data") or {}
    inputs = [
        _artifact(
            wandb, f"{recipe.name}-{split}", "dataset", f"{split} data of {recipe.name}", {"split": split, **record}
        )
        for split, record in data.items()
        if isinstance(record, Mapping)
    ]
    base = {"source": recipe.model.source, "revision": recipe.model.revision, "init": recipe.model.init}
    inputs.append(_artifact(wandb, recipe.model.source, "base-model", "what the training started from", base))
    for artifact in inputs:
        if wandb_run.offline:
            wandb_run.log_artifact(artifact, aliases=["latest"])
        else:
            wandb_run.use_artifact(artifact)
    if wandb_run.offline:
        run.update(wandb={**run.read().get("wandb", {}), "not_recorded": OFFLINE_LACKS})


def record_model(wandb: Any, wandb_run: Any, run: Run, recipe: Recipe, summary: Mapping[str, Any]) -> None:
    """The trained model: a reference to model/, with the recipe and the figures."""
    if not run.model.is_dir():
        return
    figures = {key: value for key, value in list(plain(dict(summary)).items())[:MAX_FIGURES] if key != "model"}
    about = {"figures": figures, "recipe": shown(recipe), "run": run.id}
    artifact = _artifact(wandb, f"{recipe.name}-model", "model", f"model of {recipe.name}, run {run.id}", about)
    artifact.add_reference(run.model.resolve().as_uri(), checksum=True, max_objects=1000)
    wandb_run.log_artifact(artifact, aliases=["latest", "best"])


def _artifact(wandb: Any, name: str, kind: str, description: str, about: Mapping[str, Any]) -> Any:
    return wandb.Artifact(_plain_name(name), type=kind, description=description, metadata=mask(plain(dict(about))))


def _plain_name(name: str) -> str:
    """Letters, digits, dots, dashes and underscores, as W&B names artifacts: org/model -> org-model."""
    tail = Path(name).name if Path(name).is_absolute() else name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip("-.")[:120] or "unnamed"
