"""`finetune inspect`: what a model will see of a recipe's data, and what is wrong with it. One process, no ranks."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from finetune.app.machine import plan_alone
from finetune.app.opening import open_recipe
from finetune.app.recipe_check import check_recipe
from finetune.data.prepare.memory import default_workers
from finetune.data.prepare.progress import SilentProgress, Stage, entered
from finetune.data.sources.tables import open_tables
from finetune.data.table import Table
from finetune.errors import EXIT_DONE, EXIT_FAILED, UserError
from finetune.inspection.findings import fails_strict
from finetune.inspection.inspection import Inspection, inspect_data
from finetune.inspection.padding import Padding, Steps, measure_padding
from finetune.inspection.page import render_page
from finetune.inspection.report import make_report
from finetune.inspection.terminal_lines import ASCII, Style
from finetune.inspection.terminal_report import render
from finetune.models.config import load_config
from finetune.planning.plan import Plan
from finetune.planning.shape import cost_model
from finetune.tasks import load_task
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.facts import Facts
from finetune.tasks.task import Datasets
from finetune.terminal import print_line, print_styled, say
from finetune.tracking.atomic_files import PAGE, check_file, publish_text
from finetune.training.microbatch_planner import MicroBatchPlanner, flat

STEPS = 50  # of the schedule, whose micro-batches are collated to measure padding
PROGRESS_SECONDS = 5.0


def inspect(
    *,
    recipe: str,
    sets: list[str],
    split: str,
    rows: int,
    row: int | None,
    html: Path | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Print the report of a recipe's data (as_json: as JSON), and write it as a page if `html` is given.

    split: whose rows are shown. rows: first, random and longest ones, that many each. row: only this one.
    Returns the exit code: with `strict`, 1 if there is a finding that is an error or a warning.
    Raises: UserError for recipes and data that cannot be prepared at all.
    """
    if html is not None:
        check_file(html, PAGE)
    loaded = open_recipe(recipe, sets)
    check_recipe(loaded)
    plan = plan_alone(loaded.recipe)
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # with threads of its own, this process could not be forked
    inspection = open_inspection(plan, _Progress())
    if split not in inspection.splits:
        raise UserError(
            f"the recipe has no split {split!r}",
            where="--split",
            remedy=f"It has {', '.join(inspection.splits)}.",
        )
    report = make_report(inspection, split=split, count=rows, row=row, padding=padding_of(inspection))
    if html is not None:
        publish_text(html, render_page(report))
    if as_json:
        print_line(json.dumps(report.to_dict(), ensure_ascii=True))
    else:
        style = terminal_style()
        print_styled("\n".join(_encodable(line) for line in render(report, style, whole_rows=row is not None)))
    if html is not None:
        say(f"wrote {html}")
    return EXIT_FAILED if strict and fails_strict(report.findings) else EXIT_DONE


def open_inspection(plan: Plan, progress: InspectionProgress) -> Inspection:
    """Prepare the data as training does, and read it. Rows that would end the training become findings instead."""
    task, stops = load_task(plan.recipe.task), plan.recipe.data.on_bad_row != "skip"
    with entered(Stage(default_workers(), progress)):
        try:
            artifacts, tables, datasets, notes = prepare(plan, task)
        except UserError as first:
            if not stops:
                raise
            data = plan.recipe.data.model_copy(update={"on_bad_row": "skip"})
            plan = replace(plan, recipe=plan.recipe.model_copy(update={"data": data}))
            try:
                artifacts, tables, datasets, notes = prepare(plan, task)
            except UserError:  # nothing is left without the bad rows: they are the cause
                raise first from None
            notes.insert(0, "training would stop at the rows that cannot be used; they are left out here")
    return inspect_data(task, plan, artifacts, tables, datasets, notes=notes, stops=stops, tick=progress.tick)


def prepare(plan: Plan, task: Any) -> tuple[TaskArtifacts, Mapping[str, Table], Datasets, list[str]]:
    """(artifacts, tables, encoded splits, notes), through the same functions and the same cache as training."""
    facts, messages = Facts(), list[str]()
    tables = open_tables(plan.recipe, task.card, notify=messages.append)
    artifacts = task.prepare(plan, tables, facts)
    datasets = {name: task.dataset(plan, artifacts, table, facts) for name, table in tables.items()}
    return artifacts, tables, datasets, [*messages, *plan.notes, *facts.notes]


def padding_of(inspection: Inspection) -> Padding | None:
    """How full the micro-batches of the first steps are, on one rank; None for images, which are never padded."""
    plan, artifacts, train = inspection.plan, inspection.artifacts, inspection.train
    if inspection.task.card.batches.decodes or not len(train.examples):
        return None
    packing, capacity = plan.training.packing, int(artifacts.settings.get("capacity", 0))
    planner = MicroBatchPlanner(
        train.examples.costs,
        cost_model(load_config(plan.recipe.model)),
        ranks=1,
        micro_batch=plan.batch.micro_batch,
        packing=packing,
        capacity=capacity,
        lockstep=False,
    )
    schedule = planner.schedule(plan.recipe, plan.training.balance_window)
    steps: Steps = [
        [[flat(step)[place] for place in micro] for micro in planner.assign(step, None).ranks[0] if micro]
        for step in map(schedule.step, range(min(STEPS, schedule.steps_per_epoch)))
    ]
    return measure_padding(inspection.task, artifacts, train, steps, schedule.steps_per_epoch, packing, capacity)


def terminal_style() -> Style:
    """As wide as the terminal; color only in one; plain marks where the encoding has no others."""
    width = shutil.get_terminal_size((100, 24)).columns
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    return Style(width, color) if encoding == "utf8" else Style(width, color, **ASCII)


def _encodable(line: str) -> str:
    encoding = sys.stdout.encoding or "ascii"
    return line.encode(encoding, "backslashreplace").decode(encoding)


class InspectionProgress(Protocol):
    """Shows how far preparing (as data/prepare/progress.py has it) and reading are."""

    def show(self, text: str, share: float) -> None: ...
    def close(self) -> None: ...
    def tick(self, what: str, done: int, total: int) -> None: ...


class _Progress(SilentProgress):
    """A line every few seconds, on stderr: what is printed on stdout is the report."""

    def __init__(self) -> None:
        self._reported = time.monotonic()

    def show(self, text: str, share: float) -> None:
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS:
            self._reported = now
            say(text)

    def tick(self, what: str, done: int, total: int) -> None:
        self.show(f"{what}: {done:,} of {total:,}", done / max(total, 1))
