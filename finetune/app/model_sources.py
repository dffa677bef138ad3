"""What a model that is to be asked comes from: a run, a folder exported from one, or any model that says what it is for.

Finding it reads no weights and needs no ranks, so that a command can check its arguments before it starts any. Nothing of
the folder runs: code that a model brings needs `trust_remote_code` of the caller, whatever the folder says.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from finetune.app.kept_files import read_plan, tell_edited_recipe
from finetune.app.model_places import refuse_other_folders
from finetune.app.run_contents import checkpoint_folder, find_checkpoint, portable_recipe, run_artifacts, run_recipe
from finetune.app.starting import take_adapter_values
from finetune.data.columns import nearest_name
from finetune.data.prepare.cache import digest
from finetune.data.prepare.file_digest import contents_digest, file_digest, folder_digest
from finetune.errors import UserError
from finetune.models.adapter_source import find_adapter
from finetune.models.config import load_config
from finetune.models.quiet import quiet_transformers
from finetune.models.source import RUN_FILE, resolve_model
from finetune.planning.stored import StoredPlan
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.model import AdapterSection, ModelSection
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.recipe.trust import is_trusted, trusted
from finetune.recipe.user_path import user_path
from finetune.tasks import CARDS
from finetune.tasks.artifacts import FILE, TaskArtifacts, has_artifacts, load_artifacts
from finetune.tasks.from_config import derive_artifacts
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import MANIFEST, Checkpoint

Notify = Callable[[str], None]
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
STORED = {"BF16": "bfloat16", "F16": "float16"}  # as safetensors calls them
SHAPING_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class FoundModel:
    """name: for people, such as "runs/sst2/1 (step-00000120)". digest: of weights, artifacts and base, 32 hex digits.

    recipe: what the model is built by. stored: the plan of its training, of a run alone. checkpoint: whose weights are put
    into what was built; None: they are those of recipe.model.source. checkpoint_folder: the same, unread. body: only what lies
    below the head is asked, so the head may lack weights.
    """

    name: str
    digest: str
    recipe: Recipe
    artifacts: TaskArtifacts
    stored: StoredPlan | None = None
    run: Run | None = None
    checkpoint_folder: Path | None = None
    body: bool = False

    @property
    def precision(self) -> str:
        """That of its training; of a folder, what its weights are stored in."""
        return str(self.stored.training["precision"]) if self.stored else self.recipe.training.precision

    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint, its digests checked. Raises: UserError if it is damaged."""
        if self.run is None or self.checkpoint_folder is None:
            return None
        return find_checkpoint(self.run, self.checkpoint_folder.name)


def find_model(
    source: str | Path,
    *,
    checkpoint: str = "best",
    task: str = "",
    trust_remote_code: bool = False,
    body: bool = False,
    notify: Notify = lambda line: None,
) -> FoundModel:
    """The model that `source` names: a run folder, an exported folder such as its `model/`, or any model folder, package
    or hub id whose configuration tells what it is for.

    checkpoint: of a run: best (latest where nothing was validated), latest, or a name such as step-00000120.
    task: for a model that was not trained here; "": as its configuration tells.
    trust_remote_code: run Python code that the model brings, as `--trust-remote-code` on the command line also says.
    body: only what lies below its head is asked.
    notify: called with lines for the user.
    Raises: UserError if there is no such model, or its files do not determine how to ask it.
    """
    with trusted(trust_remote_code or is_trusted()):
        return _find_model(source, checkpoint, task, notify, body)


def _find_model(source: str | Path, checkpoint: str, task: str, notify: Notify, body: bool) -> FoundModel:
    if task and task not in CARDS:
        near = nearest_name(task.replace("-", "_"), CARDS)
        hint = f"Did you mean {near}?" if near else f"Tasks are {', '.join(sorted(CARDS))}."
        raise UserError(f"there is no task {task!r}", where="--task", remedy=hint)
    path = user_path(source)
    if (path / RUN_FILE).is_file():
        return _find_in_run(Run.open(path), checkpoint, notify)
    refuse_other_folders(str(source), path)
    if checkpoint != "best":
        raise UserError(
            f"{source} is not the folder of a run, so it has no checkpoint {checkpoint}",
            remedy="Leave out --checkpoint, or give the folder of the run.",
        )
    if has_artifacts(Path(resolve_model(str(source)))):
        found = _find_exported(Path(resolve_model(str(source))), str(source))
    else:
        return _find_by_config(str(source), task, notify, body)
    if task and task != found.artifacts.task:
        raise UserError(
            f"the model was trained for {found.artifacts.task}, not for {task}",
            where=str(source),
            remedy="Leave out --task.",
        )
    return found


def _find_in_run(run: Run, checkpoint: str, notify: Notify) -> FoundModel:
    recipe = run_recipe(run).recipe
    folder = checkpoint_folder(run, checkpoint)
    artifacts = run_artifacts(run, recipe, notify)
    tell_edited_recipe(run, folder, notify)
    built = for_answers(portable_recipe(run, recipe))
    parts = [file_digest(folder / MANIFEST), folder_digest(run.artifacts), _base_digest(built.model)]
    return FoundModel(
        name=f"{run.path} ({folder.name})",
        digest=digest("asked model", "run", parts),
        recipe=built,
        artifacts=artifacts,
        stored=read_plan(run),
        run=run,
        checkpoint_folder=folder,
    )


def _find_exported(folder: Path, source: str) -> FoundModel:
    card = CARDS[stored_task(folder)]
    artifacts = load_artifacts(folder, card)
    if "new_head" in card.options.model_fields:  # the head was trained: it is among the weights
        artifacts = replace(artifacts, options=artifacts.options.model_copy(update={"new_head": False}))
    model = ModelSection(source=str(folder), trust_remote_code=is_trusted())
    return FoundModel(
        name=source,
        digest=digest("asked model", "folder", files_digest(folder), _base_digest(model)),
        recipe=recipe_of(artifacts, model),
        artifacts=artifacts,
    )


def _find_by_config(source: str, task: str, notify: Notify, body: bool) -> FoundModel:
    resolved = resolve_model(source)
    model = ModelSection(source=resolved, trust_remote_code=is_trusted())
    notes: list[str] = []
    with quiet_transformers(), _known_kinds(source):
        artifacts = derive_artifacts(model, task, notes, body=body)
        named = files_digest(Path(resolved)) if Path(resolved).is_dir() else [resolved, _commit(model)]
    for note in notes if not body else ():  # which are about the head
        notify(note)
    return FoundModel(
        name=source,
        digest=digest("asked model", "configuration", named, _base_digest(model), artifacts.task),
        recipe=recipe_of(artifacts, model),
        artifacts=artifacts,
        body=body,
    )


@contextmanager
def _known_kinds(source: str) -> Iterator[None]:
    """Turn what transformers raises for a configuration that it does not know into UserErrors."""
    try:
        yield
    except (ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            raise UserError(
                "the model brings Python code of its own",
                where=source,
                remedy="Allow it with --trust-remote-code if you trust its author.",
            ) from None
        raise UserError(
            f"the model cannot be read: {first}",
            where=source,
            remedy="It may be damaged, of a kind that this version of transformers does not know, or no model at all.",
            trace="".join(traceback.format_exception(error)),
        ) from error


def _commit(model: ModelSection) -> str:
    """The commit of a hub model in the cache."""
    return str(getattr(load_config(model), "_commit_hash", None) or "")


def _short_name(source: str) -> str:
    """What a model is called without a recipe: its folder's name, of <run>/model the one above; of a hub id the last part."""
    path = Path(source)
    last = path.resolve().parent.name if path.is_dir() and path.name == "model" else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:120] or "model"


def recipe_of(artifacts: TaskArtifacts, model: ModelSection) -> Recipe:
    """The recipe that builds `model` for the task of `artifacts`. Its data is never read."""
    card, adapter, dtype = CARDS[artifacts.task], find_adapter(model.source), stored_dtype(model)
    values = {
        "name": _short_name(model.source),
        "task": card.name,
        "model": model.model_copy(update={"dtype": dtype}),
        "adapter": AdapterSection() if adapter is not None else None,
        "data": {"train": [{"source": FILE}]},
        "training": {"precision": PRECISIONS[dtype]},
        "options": artifacts.options,
    }
    recipe = recipe_type(card).model_validate(values)
    return for_answers(take_adapter_values(LoadedRecipe(recipe, {})).recipe)


def stored_dtype(model: ModelSection) -> str:
    """float32, bfloat16 or float16: of an adapter's own weights, or what the configuration says of the model's."""
    adapter = find_adapter(model.source)
    if adapter is not None:
        with safe_open(adapter.weights, framework="pt") as weights:
            dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (not a dict)
        return next((name for short, name in STORED.items() if dtypes == {short}), "float32")
    named = str(getattr(load_config(model), "dtype", None)).removeprefix("torch.")
    return named if named in PRECISIONS else "float32"


def for_answers(recipe: Recipe) -> Recipe:
    """Without what serves training alone, and would keep generation from using its cache."""
    model = recipe.model.model_copy(update={"gradient_checkpointing": False})
    return recipe.model_copy(update={"model": model})


def stored_task(folder: Path) -> str:
    """The task of artifacts in `folder`. Raises: UserError if it is not one of this version's."""
    path = folder / FILE
    try:
        task: Any = json.loads(path.read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the task artifacts cannot be read: {error}", where=str(path), remedy="Export the model again."
        ) from None
    if task not in CARDS:
        raise UserError(
            f"the model was trained for the task {task!r}, which this version does not have",
            where=str(path),
            remedy=f"Its tasks are {', '.join(sorted(CARDS))}.",
        )
    return str(task)


def files_digest(folder: Path) -> str:
    """Of the files of a model's folder that its answers depend on; contents are read once, then remembered."""
    files = sorted({path for pattern in SHAPING_FILES for path in folder.glob(pattern) if path.is_file()})
    return digest([path.name for path in files], contents_digest(files))


def _base_digest(model: ModelSection) -> str:
    """Of weights that are not in the checkpoint: the base of an adapter, or frozen ones."""
    if not model.source or model.init != "pretrained":
        return ""
    adapter = find_adapter(model.source)
    folders = [Path(resolve_model(model.source)), *([Path(adapter.base)] if adapter else [])]
    return digest([files_digest(folder) if folder.is_dir() else str(folder) for folder in folders])
