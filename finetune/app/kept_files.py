"""What a run folder's own files must still be. Its training writes plan.json and artifacts/, and digests of them into run.json:
with another precision, tokenizer or configuration the same weights are another model, and nothing would say so.

recipe.yaml has none: who owns a run may move its data or its base model, and say so there. What it says otherwise than the
training of a checkpoint is reported by every command, and refused when the training is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from finetune.app.edited_recipe import edited_keys
from finetune.data.prepare.cache import digest
from finetune.data.prepare.file_digest import folder_digest, read_digest
from finetune.errors import UserError
from finetune.planning.stored import StoredPlan
from finetune.recipe.identity import list_differences
from finetune.recipe.load import load_recipe
from finetune.tasks import CARDS
from finetune.tasks.artifacts import MODEL
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import MANIFEST, Manifest

Notify = Callable[[str], None]
WRITER = "transformers_version"  # of config.json: another one writes the same configuration
UNKNOWN = (
    "note: run.json has no digests of the run's plan.json and model configuration (an earlier version made it): "
    "they are taken as they are"
)


def record_kept_files(run: Run) -> None:
    """Rank 0 only, after the files were written."""
    run.update(
        artifacts=folder_digest(run.artifacts, without=(MODEL,)),
        plan=_plan_digest(StoredPlan.read(run.plan_file)),
        model_config=_config_digest(run.artifacts / MODEL),
    )


def read_plan(run: Run) -> StoredPlan | None:
    """plan.json; None where there is none yet.

    Raises: UserError if it is damaged, or what it says of the training is not what the training wrote.
    """
    stored = StoredPlan.read(run.plan_file)
    recorded = _recorded(run, "plan")
    if recorded is not None and _plan_digest(stored) != recorded:
        raise UserError(
            "the plan of the run is not the one that it was trained with"
            + (f" (precision {stored.training['precision']} now)" if stored is not None else ": there is no plan.json"),
            where=str(run.plan_file),
            remedy="Bring plan.json back as it was. To have the recipe resolved anew on this machine, remove it, and plan "
            "from run.json: the precision may then differ.",
        )
    return stored


def check_artifacts(run: Run) -> None:
    """Raises: UserError if the files of artifacts/ are not those that the training wrote."""
    recorded = _recorded(run, "artifacts")
    if recorded is not None and folder_digest(run.artifacts, without=(MODEL,)) != recorded:
        raise UserError(
            "the tokenizer, classes or settings of the run are not those that it was trained with",
            where=str(run.artifacts),
            remedy="Bring the files of artifacts/ back as they were; an exported model may be edited.",
        )


def check_model_config(run: Run) -> None:
    """Raises: UserError if artifacts/model/ is not the configuration that was trained."""
    recorded = _recorded(run, "model_config")
    if recorded is not None and _config_digest(run.artifacts / MODEL) != recorded:
        raise UserError(
            "the model's configuration is not the one that the run was trained with",
            where=str(run.artifacts / MODEL),
            remedy="Bring its files back as they were; an exported model may be edited.",
        )


def tell_unknown(run: Run, notify: Notify) -> None:
    """Say that an edited plan.json would not be noticed in a run of an earlier version."""
    if run.plan_file.is_file() and _recorded(run, "plan") is None:
        notify(UNKNOWN)


def tell_edited_recipe(run: Run, checkpoint: Path, notify: Notify) -> None:
    """Say in which keys recipe.yaml is not the recipe that the checkpoint was trained with."""
    recipe = load_recipe(run.recipe_file, [], CARDS, here=False).recipe
    differences: list[str] = []
    with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged manifest is refused by who reads the weights
        differences = edited_keys(Manifest.read(checkpoint / MANIFEST), recipe)
    if differences:
        changes = list_differences([line.replace(" in the run, ", f" in {checkpoint.name}, ") for line in differences])
        notify(f"note: {run.recipe_file} was edited after the training:{changes}")


def _recorded(run: Run, name: str) -> str | None:
    return run.read().get(name) if run.file.is_file() else None


def _plan_digest(stored: StoredPlan | None) -> str:
    """Of what is kept when the run is resumed: its machine's part is made again at each start."""
    return digest("plan", stored.training) if stored is not None else ""


def _config_digest(folder: Path) -> str:
    """Empty without a configuration. A file that is no JSON counts by its bytes."""
    found = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.is_file():
            content = read_digest(path)
            with suppress(ValueError):
                tree = json.loads(path.read_bytes())
                content = digest(
                    {key: value for key, value in tree.items() if key != WRITER} if isinstance(tree, dict) else tree
                )
            found.append((path.relative_to(folder).as_posix(), content))
    return digest("configuration", found) if found else ""
