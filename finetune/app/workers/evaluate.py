"""One rank of `finetune evaluate`: the model without an optimizer, one split, figures and predictions."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from finetune.app.evaluated_data import evaluated_split, evaluation_logs, evaluation_name, reserve_folder
from finetune.app.kept_files import read_plan, tell_edited_recipe
from finetune.app.machine import plan_here
from finetune.app.run_contents import find_checkpoint, portable_recipe, run_recipe
from finetune.app.workers.context import build_engine, check_same_data, open_session
from finetune.app.workers.logs import redirect_output
from finetune.app.workers.preparing import ready
from finetune.distributed.env import from_environ
from finetune.distributed.failure import report_failures
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.session import Session
from finetune.inference.evaluation import Evaluator
from finetune.inference.reference_logprobs import add_reference_logprobs
from finetune.models.config import load_config
from finetune.models.device import describe_unused_gpu
from finetune.planning.shape import cost_model
from finetune.tasks import load_task
from finetune.tasks.prepared_task import PreparedTask
from finetune.tasks.task import reference_columns
from finetune.terminal import print_line
from finetune.tracking.atomic_files import publish_json
from finetune.tracking.run import Run
from finetune.tracking.wandb_job import log_job
from finetune.training.checkpoint_manifest import Checkpoint
from finetune.training.checkpoint_reader import load_checkpoint


def work(
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
    """This process as one of N. processes: for the supervising process alone."""
    env, opened, split = from_environ(), Run.open(run), evaluated_split(split, data, read)
    rank, name = env.rank if env else 0, name or evaluation_name(checkpoint, split, data)
    supervised = os.environ.get(SUPERVISED)
    logs = Path(supervised) if supervised else evaluation_logs(opened, name)
    redirect_output(rank, logs)
    with nullcontext() if supervised else report_failures(rank, logs, supervised=False):
        _evaluate(opened, checkpoint, split, data, read, name, sets)


def _evaluate(
    opened: Run, checkpoint: str, split: str, data: list[str], read: list[str], name: str, sets: list[str]
) -> None:
    env, supervised = from_environ(), SUPERVISED in os.environ
    recipe = run_recipe(opened, sets).recipe
    stored = read_plan(opened)
    found_data, task = ready(recipe, opened.path, split, tuple(data), tuple(read)), load_task(recipe.task)
    compares = bool(reference_columns(task, found_data.artifacts))  # with the model as training began
    built = recipe if compares else portable_recipe(opened, recipe)
    plan = plan_here(built, env.world_size if env else 1, stored)
    unused_gpu = describe_unused_gpu()
    session = open_session(plan)
    check_same_data(session, found_data)
    if session.is_main:
        for message in (*filter(None, [unused_gpu]), *found_data.messages, *found_data.facts.notes):
            print_line(message)
    prepared = PreparedTask(task, plan, found_data.artifacts, found_data.datasets)
    engine = build_engine(session, prepared, found_data.facts, lambda text: None, trains=False)
    add_reference_logprobs(prepared, engine, notify=print_line if session.is_main else lambda text: None)
    ((name_of_split, examples),) = prepared.datasets.items()
    found = find_checkpoint(opened, checkpoint)
    if session.is_main:
        tell_edited_recipe(opened, found.path, print_line)
    load_checkpoint(engine, found)
    folder = _agree_on_folder(session, opened, name, supervised=supervised)
    cost = cost_model(load_config(plan.recipe.model))
    metrics = recipe.evaluation.metrics  # as --set may say; None: those of the training
    evaluator = Evaluator(
        task, plan, prepared.artifacts, engine, cost, list(plan.training.metrics if metrics is None else metrics)
    )
    result = evaluator.evaluate(name_of_split, examples, out=folder / "predictions.jsonl")
    if session.is_main:
        record = found_data.data[name_of_split]
        described = {**({"read": read} if read else {}), "rows": record["rows"], "digest": record["content"]}
        _publish(folder, found, split, data, described, result)
        for line in result.undefined_in_words().values():
            print_line(line)
        if not supervised:
            print_line((folder / "figures.json").read_text(encoding="utf-8"))
    session.close()
    if session.is_main:
        asked = {"checkpoint": found.path.name, "split": "" if data else split, "data": data, "sets": sets}
        figures = {f"{name_of_split}/{key}": value for key, value in result.scalars.items()}
        config = {**asked, **described, "folder": folder.name}
        wandb = recipe.tracking.wandb
        log_job("evaluate", opened.path, wandb, config, figures, print_line, model=opened.path, tables=result.tables)


def _agree_on_folder(session: Session, run: Run, name: str, *, supervised: bool) -> Path:
    """The folder that the supervising process made; else rank 0 makes one. All ranks call it."""
    if supervised:
        return run.evaluations / name
    path = str(reserve_folder(run, name)) if session.is_main else ""
    return Path(session.broadcast(path))


def _publish(
    folder: Path, checkpoint: Checkpoint, split: str, data: list[str], described: dict[str, Any], result: Any
) -> None:
    """figures.json: what was evaluated, and the figures. tables.json: confusion matrix, worst examples and the like."""
    described = {**({"sources": data} if data else {"split": split}), **described}
    publish_json(
        folder / "figures.json",
        {
            "checkpoint": checkpoint.path.name,
            "split": "" if data else split,
            "examples": result.num_examples,
            **result.scalars,
            **({"undefined": result.undefined} if result.undefined else {}),
            "data": described,
            "folder": str(folder),
            "time": time.time(),
        },
    )
    tables = {name: {"columns": list(columns), "rows": list(rows)} for name, (columns, rows) in result.tables.items()}
    (folder / "tables.json").write_text(json.dumps(tables, ensure_ascii=False), encoding="utf-8")
