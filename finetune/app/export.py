"""`finetune export`: a checkpoint of a run as a model for `from_pretrained`. Needs neither ranks nor the training data."""

from __future__ import annotations

import glob
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from finetune.app.kept_files import tell_edited_recipe
from finetune.app.model_folder import card_text, save_model
from finetune.app.run_contents import find_checkpoint, portable_plan, run_artifacts, run_recipe
from finetune.errors import UserError
from finetune.models.adapters import bring_base
from finetune.models.inputs import Known
from finetune.models.merging import Comparison, check_equal, compare, outputs_of, random_inputs
from finetune.models.merging import merge as merge_adapter
from finetune.models.quiet import quiet_transformers
from finetune.recipe.machine import has_cuda
from finetune.recipe.recipe import Recipe
from finetune.tasks import CARDS, load_task
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.facts import Facts
from finetune.terminal import print_line
from finetune.tracking.atomic_files import disk_errors
from finetune.tracking.figures import figures_of
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import Checkpoint
from finetune.training.checkpoint_reader import put_weights


def export(run: Path, *, output: Path, checkpoint: str, merge: bool) -> None:
    """Write a run's checkpoint (best, latest, a step's name) to `output`. merge: merge the adapter into its base.

    Raises: UserError if output holds something already, there is no such checkpoint, or the merged model does not give
    the outputs of the adapter; then nothing is left at `output`.
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
    artifacts = run_artifacts(opened, recipe, print_line)
    tell_edited_recipe(opened, stored.path, print_line)
    card = card_text(opened, recipe, figures_of(opened, stored.step), step=stored.step, merged=merge)
    with _published(output) as folder, quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft's use of transformers
        if merge:
            compared = _write_merged(opened, recipe, artifacts, stored, folder, card)
            print_line(f"merged model equals the adapter: {compared}")
        else:
            model = _build(opened, recipe, artifacts, stored)
            save_model(model, artifacts, recipe, folder, model.state_dict(), card)
            if recipe.adapter is not None and recipe.model.init == "config":
                bring_base(folder, model.unload().save_pretrained)
                print_line("the base, random weights that exist nowhere else, is in base/")
    print_line(f"model   {output}")


@contextmanager
def _published(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place at the end, and disappears after an error.

    Raises: FinetuneError if the disk is full, or another process has written to `output` meanwhile.
    """
    beside = output.with_name(f"{output.name}.incomplete-{os.getpid()}")  # two exports at once do not share it
    for other in output.parent.glob(f"{glob.escape(output.name)}.incomplete-*"):
        number = other.name.rpartition("-")[2]
        if number.isdecimal() and len(number) < 10 and not psutil.pid_exists(int(number)):  # it was killed
            shutil.rmtree(other, ignore_errors=True)
    try:
        with disk_errors(output, "Free some space, or give another folder. Nothing was left of the export."):
            yield beside
            if output.is_dir():
                output.rmdir()  # it is empty
            beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _build(run: Run, recipe: Recipe, artifacts: TaskArtifacts, checkpoint: Checkpoint) -> Any:
    """The model with the weights of a checkpoint, whole, in one process."""
    torch.manual_seed(recipe.seed)
    facts = Facts()
    model = load_task(recipe.task).build(portable_plan(run, recipe), artifacts, facts)
    put_weights(model, checkpoint)
    if recipe.adapter is not None and (missing := facts.simple().get("missing weights")):
        print_line(
            f"note: {recipe.model.source} lacks weights ({missing}): they were initialized from the recipe's seed, and are "
            "saved only in a merged model, not with an adapter"
        )
    return model


def _write_merged(
    run: Run, recipe: Recipe, artifacts: TaskArtifacts, checkpoint: Checkpoint, folder: Path, card: str
) -> Comparison:
    """Merge, write to `folder`, load from there, and compare with the adapter. At most one model is in memory.

    An adapter of a quantized base is merged into the weights before their quantization, and compared with the adapter
    on those. Raises: UserError if the outputs differ.
    """
    unquantized = recipe.model.model_copy(update={"quantization": "none"})
    model = _build(run, recipe.model_copy(update={"model": unquantized}), artifacts, checkpoint)
    inputs = random_inputs(model, Known(artifacts.processor, artifacts.settings, predicted_texts(run)))
    names = CARDS[recipe.task].model.outputs
    expected = outputs_of(model, inputs, names)
    merged = merge_adapter(model)
    save_model(merged, artifacts, recipe.model_copy(update={"adapter": None}), folder, merged.state_dict(), card)
    kind, dtype, device = type(merged), merged.dtype, merged.device
    del model, merged
    compared = compare(expected, outputs_of(kind.from_pretrained(folder).to(device), inputs, names), dtype)
    check_equal(compared, str(folder))
    return compared


def predicted_texts(run: Run, count: int = 4) -> list[str]:
    """A few texts of the run's predictions; [] where there are none."""
    files = sorted(run.predictions.glob("*.jsonl"))
    if not files:
        return []
    with files[-1].open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, count)]
    texts = (" ".join(value for value in row.values() if isinstance(value, str)) for row in rows)
    return [text for text in texts if text]
