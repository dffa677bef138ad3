"""What a worker has before training starts, in one process: for tests of tasks, metrics and models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.app.machine import plan_alone
from finetune.data.prepare.added_columns import ExamplesWithColumns
from finetune.data.sources.tables import open_tables
from finetune.planning.plan import Plan
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.tasks import CARDS, load_task
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, Score
from finetune.tasks.facts import Facts
from finetune.tasks.task import Datasets, reference_columns


@dataclass
class Prepared:
    """A task, its plan, and what it derived from the data. task: any, so that tests reach what is a single task's."""

    task: Any
    plan: Plan
    artifacts: TaskArtifacts
    datasets: Datasets
    facts: Facts

    def build(self) -> nn.Module:
        return self.task.build(self.plan, self.artifacts, self.facts)

    def batch(self, indices: Any = None, split: str = "train") -> Batch:
        """The examples of these positions as one batch; None: all of the split."""
        examples = self.datasets[split]
        chosen = range(len(examples)) if indices is None else indices
        return self.task.collate(self.artifacts, [examples[index] for index in chosen])

    def add_reference(self, model: nn.Module) -> None:
        """What the task wants of the model at step 0, as columns of the training examples; nothing, for most tasks."""
        names = reference_columns(self.task, self.artifacts)
        if not names:
            return
        batch, was_training = self.batch(), model.training
        with torch.no_grad():
            rows = self.task.reference_values(self.artifacts, self.task.forward(model.eval(), batch), batch)
        model.train(was_training)
        columns = {name: np.asarray([row[name] for row in rows]) for name in names}
        self.datasets["train"] = ExamplesWithColumns(self.datasets["train"], columns)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Any:
        return self.task.loss_sum(self.artifacts, self.task.forward(model, batch), batch)

    def answers(self, outputs: Any, batch: Batch) -> list[Answer]:
        return self.task.decode(self.artifacts, outputs, batch)

    def scores(self, outputs: Any, batch: Batch) -> list[Score]:
        return self.task.score(self.artifacts, outputs, batch)


def prepare(values: dict[str, Any], *, plan: Callable[[Recipe], Plan] = plan_alone) -> Prepared:
    """Everything up to the model, from the plain values of a recipe. Reads the data."""
    card = CARDS[values["task"]]
    recipe: Recipe = recipe_type(card)(**values)
    resolved = plan(recipe)
    task, facts, tables = load_task(card.name), Facts(), open_tables(recipe, card)
    artifacts = task.prepare(resolved, tables, facts)
    datasets = {split: task.dataset(resolved, artifacts, table, facts) for split, table in tables.items()}
    return Prepared(task, resolved, artifacts, datasets, facts)


def prepare_rows(
    folder: Path, rows: Sequence[Mapping[str, Any]], *, task: str, model: dict[str, Any], **sections: Any
) -> Prepared:
    """As prepare, of training rows that are written into a file of `folder`. sections: further ones of the recipe."""
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return prepare({"name": "x", "task": task, "model": model, "data": {"train": str(path)}, **sections})
