"""`finetune evaluate`: a checkpoint of a run on one of its splits or on other data, on any number of ranks."""

from __future__ import annotations

from pathlib import Path

from finetune.app.evaluated_data import (
    check_evaluated_data,
    evaluated_split,
    evaluation_logs,
    evaluation_name,
    reserve_folder,
)
from finetune.app.launch_plan import plan_launch
from finetune.app.preparation.child import ensure_prepared
from finetune.app.preparation.request import Request
from finetune.distributed.watching import run_workers
from finetune.errors import UserError
from finetune.models.adapter_source import CONFIG as ADAPTER
from finetune.terminal import print_line
from finetune.tracking.run import Run


def evaluate(
    *,
    run: Path,
    checkpoint: str,
    split: str,
    data: list[str],
    read: list[str],
    name: str,
    sets: list[str],
    processes: int | None,
) -> None:
    """Evaluate, and print the figures as JSON. They and the predictions go to evaluations/<name>/ of the run folder.

    split: of the recipe; "": validation. data: files, in place of a split. read: how they are read, as KEY=VALUE. name: of
    the folder; "": made of the checkpoint and the data.
    Raises: UserError, TrainingFailed; Stopped and KeyboardInterrupt for signals, which end it at once: it is begun anew.
    """
    _refuse_model_folder(run, data)
    opened, split = Run.open(run), evaluated_split(split, data, read)
    name = name or evaluation_name(checkpoint, split, data)
    evaluation_logs(opened, name)  # refuses a name before there is any work
    from finetune.app.run_contents import checkpoint_folder, run_recipe  # torch: seconds, after a look at the folder

    loaded = run_recipe(opened, sets)
    check_evaluated_data(loaded.recipe, split, data, read)
    checkpoint_folder(opened, checkpoint)
    launch = plan_launch(loaded, processes)
    ensure_prepared(Request.of(loaded.recipe, opened.path, split, tuple(data), tuple(read)))
    folder = reserve_folder(opened, name)
    arguments = ["evaluate", str(opened.path), "--checkpoint", checkpoint, "--name", folder.name]
    for option, values in (("--data", data) if data else ("--split", [split]), ("--read", read), ("--set", sets)):
        for value in values:
            arguments += [option, value]
    try:
        run_workers(launch(arguments), evaluation_logs(opened, folder.name), lambda line: None, ends_at_once=True)
    except BaseException:
        for path in folder.glob("*.incomplete"):  # of ranks that were killed
            path.unlink()
        raise
    finally:
        if not any(folder.iterdir()):  # it ended before there was anything to keep
            folder.rmdir()
    print_line((folder / "figures.json").read_text(encoding="utf-8"))


def _refuse_model_folder(folder: Path, data: list[str]) -> None:
    """Raises: UserError for a folder that holds a model, such as an exported one, and no run."""
    if (folder / "run.json").exists() or not any((folder / name).is_file() for name in ("config.json", ADAPTER)):
        return
    files = " ".join(data) or "FILE"
    raise UserError(
        "a model, not a run folder: it has no splits of a recipe to evaluate on",
        where=str(folder),
        remedy=f"Use finetune predict {folder} --data {files} --output answers.jsonl: "
        "where rows have targets, it prints the metrics.",
    )
