"""Answers of a few examples beside their scores, as tasks show them while they train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Score
from finetune.tasks.eval_mode import eval_mode

if TYPE_CHECKING:
    from finetune.tasks.task import Task


def scored_answers(
    task: Task, artifacts: TaskArtifacts, model: nn.Module, examples: Sequence[dict[str, Any]]
) -> list[tuple[Answer, Score]]:
    """What the model says of each example, and its score, from one forward pass in evaluation mode.

    Examples need targets. Where weights are sharded, the ranks that share a model must all call it.
    """
    with eval_mode(model) as device:
        batch = task.collate(artifacts, examples).to(device)
        outputs = task.forward(model, batch)
        answers, scores = task.decode(artifacts, outputs, batch), task.score(artifacts, outputs, batch)
    return list(zip(answers, scores, strict=True))
