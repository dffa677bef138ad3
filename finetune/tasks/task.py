"""The Task protocol: how one kind of learning works, without knowing how many ranks there are.

A task is a folder: `card.py` (what a recipe says of it; light), `data.py` (rows to examples) and `task.py` (the class).
Tasks have no state: everything that they derived from the data is in the TaskArtifacts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import nn

from finetune.data.bad_rows import BadRow
from finetune.data.table import Examples, Row, Table
from finetune.planning.plan import Plan
from finetune.recipe.card import TaskCard
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions, Score
from finetune.tasks.facts import Facts
from finetune.tasks.records import Fields
from finetune.tasks.vision.drawing import Pictures

Encoded = dict[str, Any] | BadRow
Datasets = dict[str, Examples]
"""Split name ("train", "validation", "test") -> encoded examples."""


class Task(Protocol):
    card: TaskCard

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """Processor, classes, lengths: once, from the training data. No weights, no ranks.

        Raises: UserError for data or options that do not fit the model.
        """
        ...

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """One example per row, in order; a BadRow, which says why, for a row that cannot be used.

        with_targets: read labels, replies or boxes as well. Without them rows need only what the model is asked.
        An example may hold "notices", sentences on what of its row is left out or changed: they are counted over the
        split, stored with it, and shown once with the first places, also when it is found in the cache. Under "asked"
        (records.ASKED) it may hold what of the row only its record needs; that is not stored with a split.
        """
        ...

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split with its targets, encoded once and found in the cache by every rank and by later runs.

        Raises: UserError that names file and row for a bad row where data.on_bad_row is error.
        """
        ...

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The model, adapters included. All ranks call it, after the process group is open (ZeRO-3 shards at load)."""
        ...

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """Encoded examples -> one micro-batch on the CPU; without targets where the examples have none."""
        ...

    def weight(self, batch: Batch) -> int:
        """Units of loss in the batch (supervised tokens, examples, images)."""
        ...

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs. Every rank calls it equally often: under ZeRO-3 it communicates.

        Language models compute their loss in here, inside the wrapped module's forward pass (models/loss_head.py).
        """
        ...

    def loss_sum(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """Loss summed (not averaged) over the units of the batch: float32 scalar, []."""
        ...

    def decode(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Answer]:
        """What the model says of each example, in the order of batch.ids. Needs no targets."""
        ...

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """What `record` may hold, known before the first answer; see tasks/records.py for how fields are written.

        Raises: UserError for options that do not apply to the task.
        """
        ...

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """The answer for a user's file, as JSON values under the names of record_fields; absent ones count as null.

        answer: of `decode`, with what `generate` wrote merged into its values.
        Raises: BadRow for an answer with numbers that are not finite.
        """
        ...

    def score(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Score]:
        """Loss, weight and reference of each example, in the order of batch.ids. Needs targets."""
        ...

    def metric_options(self, artifacts: TaskArtifacts) -> dict[str, Any]:
        """Keyword arguments of MetricSet, such as the names of the classes."""
        ...

    def sample(
        self,
        artifacts: TaskArtifacts,
        model: nn.Module,
        examples: Sequence[dict[str, Any]],
        *,
        synced: bool,
        pictures: Pictures | None = None,
    ) -> list[dict[str, str]]:
        """A few examples in full, for the report: [{"id", "input", "expected", "predicted"}].

        All ranks call it with the same examples. synced: generate in lockstep (ZeRO-3). pictures: where
        pictures may be saved, named in the rows under "picture"; None on ranks that write nothing.
        """
        ...


class WritingTask(Task, Protocol):
    """A task whose models write text."""

    def generate(
        self, artifacts: TaskArtifacts, model: nn.Module, batch: Batch, *, synced: bool
    ) -> list[Mapping[str, str]]:
        """What the model writes for each example: [{"text"}], and "reference_text" where the batch has targets.

        Called in eval mode and without gradients, in the order of batch.ids. synced: every rank calls it equally often,
        in lockstep (ZeRO-3).
        """
        ...


class ReferenceTask(Task, Protocol):
    """A task that compares the model with what it was at step 0 (preference tuning)."""

    def reference_columns(self, artifacts: TaskArtifacts) -> tuple[str, ...]:
        """Columns that the model at step 0 adds to every example before training; () if the loss needs none.

        `collate` finds the numbers in the examples, and must do without them while they are being computed.
        """
        ...

    def reference_values(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[dict[str, float]]:
        """[{column: number}], one entry per example, from the outputs of `forward`."""
        ...


class ImageTask(Task, Protocol):
    """A task whose rows hold images. In a prediction, they are encoded shortly before they are answered."""

    def check_target(self, artifacts: TaskArtifacts, row: Row) -> None:
        """Raises: BadRow for a target that `encode` would refuse, as far as it shows without decoding the image."""
        ...


def check_target(task: Task, artifacts: TaskArtifacts, row: Row) -> None:
    """See ImageTask; nothing for other tasks. Raises: BadRow."""
    if hasattr(task, "check_target"):
        cast(ImageTask, task).check_target(artifacts, row)


def as_writing_task(task: Task) -> WritingTask:
    """The task as one that generates text. Its card has metrics of generated texts, so it must have `generate`."""
    assert hasattr(task, "generate"), f"{task.card.name} has metrics of generated texts on its card, but no generate()"
    return cast(WritingTask, task)


def reference_columns(task: Task, artifacts: TaskArtifacts) -> tuple[str, ...]:
    """Columns of reference log-probabilities that the task needs; () for most tasks."""
    return cast(ReferenceTask, task).reference_columns(artifacts) if hasattr(task, "reference_columns") else ()


def merge_texts(answers: Sequence[Answer], written: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Answers with what the model wrote for each example added to their values."""
    return [
        Answer(answer.id, {**answer.values, **text}, answer.shown)
        for answer, text in zip(answers, written, strict=True)
    ]
