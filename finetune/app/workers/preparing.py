"""The stage of preparation itself, where torch and transformers are loaded; app/preparation/ says when it runs, and where.

The entry `prepared/<key>` holds

    prepared.json     what was prepared, from what; facts and messages for people; the other cache entries that belong to it
    artifacts/        the TaskArtifacts, as a run folder has them
    datasets.pickle   the splits as tasks made them: they refer to files of the cache
    arrays.bin        their arrays, mapped rather than read: ranks share them, and start equally fast for any number of rows

Pickles run code when they are loaded. The cache belongs to the user, like the compiled files that Python keeps; an entry that
another user owns is not loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.app.data_changes import describe_data
from finetune.app.evaluated_data import open_evaluated_table
from finetune.app.kept_files import check_artifacts, read_plan, tell_unknown
from finetune.app.machine import plan_alone
from finetune.app.preparation.entry import MANIFEST, find_prepared, mark_used, read_manifest
from finetune.app.preparation.request import ARTIFACTS, FORMAT, KEPT, KIND, Names, Request, artifacts_digest
from finetune.app.preparation.waiting import PreparationFailed, clear_failure, report_failure, wait_for_prepared
from finetune.app.run_contents import portable_recipe, run_artifacts
from finetune.app.workers.prepared_datasets import load_datasets, write_datasets
from finetune.data.prepare.cache import publish, recorded_entries
from finetune.data.prepare.memory import default_workers
from finetune.data.prepare.named_files import list_named_files, write_named_files
from finetune.data.prepare.progress import Stage, entered
from finetune.data.sources.shared_rows import shared_rows
from finetune.data.sources.tables import open_tables
from finetune.data.table import Table
from finetune.distributed.env import from_environ
from finetune.distributed.failure import PeerFailed
from finetune.planning.plan import Plan
from finetune.recipe.recipe import Recipe
from finetune.tasks import CARDS, load_task
from finetune.tasks.artifacts import FILE, MODEL, TaskArtifacts, has_artifacts, load_artifacts
from finetune.tasks.facts import Facts
from finetune.tasks.task import Datasets, Task
from finetune.terminal import ProgressLine, print_line
from finetune.tracking.atomic_files import disk_errors
from finetune.tracking.run import Run
from finetune.tracking.shared_rows import SHARED

Notify = Callable[[str], None]


@dataclass
class PreparedData:
    """What ranks need of the data. messages: lines that preparation had for the user, such as skipped rows.

    data: split -> its record (data_changes.py): rows, digest of their content, files.
    """

    folder: Path
    artifacts: TaskArtifacts
    datasets: Datasets
    facts: Facts
    messages: list[str]
    data: dict[str, dict[str, Any]]

    def save_artifacts(self, folder: Path) -> None:
        """Copy the artifacts into a run folder, byte by byte, so that a resumed run finds the same prepared data.

        Raises: FinetuneError if the folder cannot be written.
        """
        source = self.folder / ARTIFACTS
        if has_artifacts(folder) and artifacts_digest(folder) == artifacts_digest(source):
            return
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in source.iterdir():
                if path.is_dir():
                    shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
            beside = folder / f".{FILE}"
            shutil.copyfile(source / FILE, beside)
            beside.replace(folder / FILE)


def ready(
    recipe: Recipe,
    run: Path | None = None,
    split: str = "",
    data: tuple[str, ...] = (),
    read: tuple[str, ...] = (),
    *,
    data_changed: bool = False,
) -> PreparedData:
    """The prepared data for this rank: mapped if it is there; else local rank 0 prepares it, and the others wait.

    Every rank calls it, before the process group is opened: no rank waits in a collective. The arguments are a Request's.
    Raises: UserError as `prepare` does, and for data that is not that of the run; PeerFailed on a rank that waited for
    one that failed.
    """
    request = Request.of(recipe, run, split, data, read, data_changed=data_changed)
    names, env = request.names(), from_environ()
    folder = find_prepared(names)
    if folder is None and env is not None and env.local_rank > 0:
        try:
            folder = wait_for_prepared(names)
        except PreparationFailed as error:
            raise PeerFailed(error.what) from None
    if folder is None:
        folder = prepare(request, names, Stage(default_workers(), ProgressLine(), print_line))
    prepared = load(folder, recipe)
    request.check_data(prepared.data)
    return prepared


def prepare_apart(request: Request, names: Names, workers: int | None) -> str:
    """In a child of the process that supervises (app/preparation/child.py)."""
    return str(prepare(request, names, Stage(workers or default_workers(), ProgressLine(), print_line)))


def prepare(request: Request, names: Names, stage: Stage) -> Path:
    """Prepare and publish. The entry is marked as in use by this process.

    Raises: UserError that names files and rows for data that cannot be used.
    """
    clear_failure(names)
    try:
        with entered(stage):
            folder = publish(
                KIND,
                names.published,
                lambda folder: _write(folder, request),
                about=request.recipe.name,
                notify=print_line,
            )
    except BaseException:
        report_failure(names)
        raise
    mark_used(folder)
    return folder


def _write(folder: Path, request: Request) -> None:
    recipe, facts = request.recipe, Facts()
    messages: list[str] = []
    with recorded_entries() as entries:
        plan, artifacts, tables, origin = _read(request, recipe, facts, messages.append)
        images = list_named_files(tables)
        described = describe_data(tables)
        request.check_data(described)  # before a label that is new is a bad row
        task = load_task(recipe.task)
        datasets = encode_tables(plan, task, artifacts, tables, facts)
    if origin is None:
        artifacts.save(folder / ARTIFACTS)
    else:
        shutil.copytree(origin, folder / ARTIFACTS, ignore=shutil.ignore_patterns(MODEL))
    write_datasets(folder, datasets)
    write_named_files(folder, *images)
    kept = {name: getattr(plan.training, name) for name in KEPT}
    manifest = {
        "format": FORMAT,
        "recipe": recipe.name,
        "kept": {**kept, "artifacts": artifacts_digest(folder / ARTIFACTS)},
        "facts": facts.values,
        "notes": facts.notes,
        "messages": messages,
        "examples": {name: len(examples) for name, examples in datasets.items()},
        "data": described,
        "entries": [str(entry) for entry in entries],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def _read(
    request: Request, recipe: Recipe, facts: Facts, notify: Notify
) -> tuple[Plan, TaskArtifacts, list[Table], Path | None]:
    """(plan, artifacts, tables, the run's folder of artifacts if they come from there)."""
    run = None if request.run is None else Run(request.run)
    stored = None if run is None else read_plan(run)
    if request.split or request.data:
        assert run is not None, "a run is evaluated"
        artifacts = run_artifacts(run, recipe, notify)
        table = open_evaluated_table(recipe, request.split, request.data, request.read)
        return plan_alone(portable_recipe(run, recipe), stored, builds=False), artifacts, [table], run.artifacts
    plan, card = plan_alone(recipe, stored, builds=False), CARDS[recipe.task]
    tables = open_tables(recipe, card, notify=notify)
    for shared in shared_rows(tables, card):
        notify(shared.line)
        facts[SHARED.format(shared.split)] = shared.count
    if run is not None and has_artifacts(run.artifacts):
        check_artifacts(run)
        tell_unknown(run, notify)
        return plan, load_artifacts(run.artifacts, card), list(tables.values()), run.artifacts
    return plan, load_task(recipe.task).prepare(plan, tables, facts), list(tables.values()), None


def encode_tables(plan: Plan, task: Task, artifacts: TaskArtifacts, tables: Iterable[Table], facts: Facts) -> Datasets:
    """Split name -> encoded examples."""
    return {table.name: task.dataset(plan, artifacts, table, facts) for table in tables}


def load(folder: Path, recipe: Recipe) -> PreparedData:
    """The content of an entry, mapped. Raises: UserError if it belongs to another user."""
    datasets = load_datasets(folder)
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} was found a moment ago"
    return PreparedData(
        folder,
        load_artifacts(folder / ARTIFACTS, CARDS[recipe.task]),
        datasets,
        Facts(manifest["facts"], manifest["notes"]),
        manifest["messages"],
        manifest["data"],
    )
