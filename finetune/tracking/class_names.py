"""The names of a run's classes, read as data from its artifacts: no model library is imported for them."""

from __future__ import annotations

from finetune.recipe.json_file import read_json
from finetune.tracking.run import Run


def class_names(run: Run) -> list[str]:
    """[] for a task without classes, and where the artifacts are missing or damaged."""
    try:
        return [str(name) for name in read_json(run.artifacts / "artifacts.json")["classes"]["names"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
