"""What a run was made from and what came of it, as W&B artifacts: the data, the base model, the run, the trained model.

Artifacts name their content by digest and refer to files; `tracking.upload` has W&B store them. Offline they are recorded and
reach the server with `wandb sync`; that a run *used* data or a model can only be recorded online, where the server knows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.recipe.identity import stored_values
from finetune.recipe.recipe import Recipe
from finetune.recipe.secrets import mask
from finetune.recipe.user_path import user_path
from finetune.terminal import printable
from finetune.tracking.atomic_files import plain
from finetune.tracking.run import Run, shown
from finetune.tracking.wandb_settings import best_values

MAX_FIGURES = 50
MAX_OBJECTS = 10_000  # files of a folder that is uploaded
OFFLINE_LACKS = "links to the data and the base model: only a W&B server records them"
KEPT = ("recipe.yaml", "plan.json")  # of the run folder: small, and always stored


def record_inputs(wandb_run: Any, run: Run, recipe: Recipe) -> None:
    """The data of each split and the base model: used by this run where the server can say so. Offline they are artifacts of
    the run, and run.json says what W&B lacks.
    """
    data = run.read().get("data") or {}
    inputs = []
    for split, record in data.items():
        if isinstance(record, Mapping):
            about = {"split": split, **record}
            artifact = _artifact(f"{recipe.name}-{split}", "dataset", f"{split} data of {recipe.name}", about)
            _add_data(artifact, recipe, split)
            inputs.append(artifact)
    base = {"source": recipe.model.source, "revision": recipe.model.revision, "init": recipe.model.init}
    inputs.append(_artifact(recipe.model.source, "base-model", "what the training started from", base))
    for artifact in inputs:
        if wandb_run.offline:
            wandb_run.log_artifact(artifact, aliases=["latest"])
        else:
            wandb_run.use_artifact(artifact)
    if wandb_run.offline:
        run.update(wandb={**run.read().get("wandb", {}), "not_recorded": OFFLINE_LACKS})


def record_run(wandb_run: Any, run: Run, recipe: Recipe, status: str, summary: Mapping[str, Any]) -> None:
    """The run: its recipe and plan, and references to the journal and the report."""
    about = {"status": status, "figures": _figures(summary), "run": run.id}
    artifact = _artifact(f"{recipe.name}-run", "run", f"recipe, plan and journal of run {run.id}", about)
    for name in KEPT:
        if (run.path / name).is_file():
            artifact.add_file(str(run.path / name), name=name)
    if run.metrics_file.is_file():
        artifact.add_reference(run.metrics_file.resolve().as_uri(), name=run.metrics_file.name, checksum=False)
    wandb_run.log_artifact(artifact, aliases=["latest", run.id])


def record_model(wandb_run: Any, run: Run, recipe: Recipe, summary: Mapping[str, Any]) -> None:
    """The trained model, with the recipe and the figures: a reference to model/, or its files if `tracking.upload` says so.

    Its aliases: `latest`, the run's id, and `best` unless another run of the recipe in the same folder has a better value.
    """
    if not run.model.is_dir():
        return
    about = {"figures": _figures(summary), "recipe": shown(recipe), "run": run.id}
    artifact = _artifact(model_name(recipe.name), "model", f"model of {recipe.name}, run {run.id}", about)
    if "model" in recipe.tracking.upload:
        artifact.add_dir(str(run.model))
    else:
        artifact.add_reference(run.model.resolve().as_uri(), checksum=True, max_objects=MAX_OBJECTS)
    aliases = ["latest", run.id, *(["best"] if _is_best(run, recipe, summary) else [])]
    wandb_run.log_artifact(artifact, aliases=aliases)


def use_model(wandb_run: Any, run: Run) -> str:
    """Link a W&B run (an evaluation, a prediction) to the model of a training. Returns what could not be linked, and why; ""
    if it is linked.
    """
    name = f"{model_name(run.name)}:{run.id}"
    if wandb_run.offline:
        return f"the link to the model {name}: only a W&B server can"
    try:
        wandb_run.use_artifact(name)
    except Exception as error:  # the training was recorded offline, or in another project
        return f"the link to the model {name}: {str(mask(str(error))).strip().splitlines()[0]}"
    return ""


def model_name(recipe_name: str) -> str:
    """Of the artifact that holds the models of a recipe, a version per run."""
    return _plain_name(f"{recipe_name}-model")


def _is_best(run: Run, recipe: Recipe, summary: Mapping[str, Any]) -> bool:
    """Whether no other finished run of the recipe, in the same folder, has a better value of the same metric."""
    metric, value = summary.get("best_metric"), summary.get("best_value")
    if not isinstance(value, (int, float)):
        return True
    sign = 1 if best_values(run, recipe).get(str(metric)) == "max" else -1
    for file in run.path.resolve().parent.glob("*/run.json"):
        try:
            other = Run(file.parent).read()
        except UserError:
            continue
        of, figures = other.get("name"), other.get("summary") or {}
        known = figures.get("best_value")
        if other.get("id") == run.id or of != recipe.name or figures.get("best_metric") != metric:
            continue
        if isinstance(known, (int, float)) and sign * known > sign * value:
            return False
    return True


def _add_data(artifact: Any, recipe: Recipe, split: str) -> None:
    """References to the local files and folders that the recipe names for a split, or the files themselves."""
    for source in getattr(recipe.data, split, None) or ():
        path = user_path(str(source.source))
        if not path.exists():  # of a hub, built in, or several files in one pattern: the digests name it
            continue
        if "data" not in recipe.tracking.upload:
            artifact.add_reference(path.resolve().as_uri(), name=printable(path.name), checksum=False)
        elif path.is_dir():
            artifact.add_dir(str(path), name=printable(path.name))
        else:
            artifact.add_file(str(path), name=printable(path.name))


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in list(plain(dict(summary)).items())[:MAX_FIGURES] if key != "model"}


def _artifact(name: str, kind: str, description: str, about: Mapping[str, Any]) -> Any:
    import wandb

    return wandb.Artifact(_plain_name(name), type=kind, description=description, metadata=mask(plain(dict(about))))


def _plain_name(name: str) -> str:
    """Letters, digits, dots, dashes and underscores, as W&B names artifacts: org/model -> org-model."""
    tail = Path(name).name if Path(name).is_absolute() else name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip("-.")[:120] or "unnamed"


def training_run(folder: Path) -> tuple[Run, Mapping[str, Any]] | None:
    """(the training whose run folder this is, `tracking` of its recipe); None for another folder."""
    run = Run(folder)
    if not run.file.is_file():
        return None
    try:
        run.read()
        tracking = stored_values(run.recipe_file).get("tracking")
    except UserError:
        return None
    return run, tracking if isinstance(tracking, Mapping) else {}
