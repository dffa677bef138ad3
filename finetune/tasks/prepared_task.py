"""A task with all that was resolved and derived for one recipe: what training, evaluation and the reference start from."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.task import Datasets, Task


@dataclass(frozen=True)
class PreparedTask:
    """plan: the recipe, resolved for this machine. datasets: the encoded examples of every split."""

    task: Task
    plan: Plan
    artifacts: TaskArtifacts
    datasets: Datasets
