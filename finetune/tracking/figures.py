"""The figures of one checkpoint: what was measured with exactly these weights."""

from __future__ import annotations

from finetune.tracking.journal import read_rows
from finetune.tracking.run import Run
from finetune.tracking.series import NOT_FIGURES


def figures_of(run: Run, step: int) -> dict[str, float]:
    """Figures of the validation split after `step` ("loss", "accuracy", ...), and of the test split ("test_loss", ...) if
    it was evaluated with these weights. Empty where they were never evaluated.

    The test split is evaluated once, with the weights of the best checkpoint.
    """
    figures: dict[str, float] = {}
    for row in read_rows(run.metrics_file):
        if row.get("split") == "validation" and row.get("step") == step:
            figures = {key: value for key, value in row.items() if key not in NOT_FIGURES and _is_number(value)}
    summary = run.read().get("summary") or {}
    if summary.get("best_step") == step:
        figures |= {key: value for key, value in summary.items() if key.startswith("test_") and _is_number(value)}
    return figures


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
