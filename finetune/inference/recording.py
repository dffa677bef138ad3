"""Outcomes as the records of a user's file: the fields of the task beside the kept columns, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.inference.answering import Answered, Outcome, RowError
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import RecordOptions
from finetune.tasks.records import Fields
from finetune.tasks.task import Task

ROW, ERROR = "row", "error"
ERROR_FIELDS: Fields = {"kind": "text", "message": "text"}


def record_outcome(
    task: Task,
    artifacts: TaskArtifacts,
    number: int,
    outcome: Outcome,
    options: RecordOptions,
    kept: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """{"row": 17, "label": ..., kept columns} or {"row": 17, "error": {"kind", "message"}, kept columns}.

    An answer with numbers that are not finite is an error of its row, of kind "failed".
    """
    error = outcome if isinstance(outcome, RowError) else None
    fields: Mapping[str, Any] = {}
    if isinstance(outcome, Answered):
        try:
            fields = task.record(artifacts, outcome.answer, options)
        except BadRow as bad:
            error = RowError("failed", str(bad))
    return {ROW: number, **(fields if error is None else {ERROR: error.record()}), **(kept or {})}


def record_fields(task: Task, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
    """All fields of record_outcome but the kept columns. Raises: UserError for options that do not apply to the task."""
    return {ROW: "integer", **task.record_fields(artifacts, options), ERROR: ERROR_FIELDS}
