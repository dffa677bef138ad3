"""What W&B gets at the end of a run: an alert, how each example fared, curves of the best evaluation, the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.recipe.recipe import Recipe
from finetune.tracking.example_history import left_out, prediction_files
from finetune.tracking.run import Run
from finetune.tracking.wandb_examples import curves_at, draw_curves, tables_at_end
from finetune.tracking.wandb_lineage import record_model, record_run
from finetune.tracking.wandb_tables import TableLog

LEVELS = {"failed": "ERROR", "diverged": "ERROR", "disk_full": "ERROR", "stopped": "WARN", "done": "INFO"}
WORDS = {"disk_full": "disk full"}


def send_alert(wandb_run: Any, run: Run, recipe: Recipe, status: str, summary: Mapping[str, Any]) -> None:
    """Where `tracking.alerts` asks for this kind of end. The kind of a failure is in summary["failure_kind"]."""
    kind = str(summary.get("failure_kind") or status) if status == "failed" else status
    if kind not in recipe.tracking.alerts:
        return
    lines = [str(summary["failure"])] if summary.get("failure") else []
    if summary.get("best_value") is not None:
        lines.append(f"best {summary.get('best_metric')}: {summary['best_value']:g} at step {summary.get('best_step')}")
    lines.append(f"{recipe.name}, run {run.id}, {run.path}")
    wandb_run.alert(title=f"{recipe.name}: {WORDS.get(kind, kind)}", text="\n".join(lines), level=LEVELS[kind])


def tell_end(
    wandb_run: Any,
    run: Run,
    recipe: Recipe,
    tables: TableLog,
    status: str,
    summary: Mapping[str, Any],
    best_step: int | None,
) -> None:
    """Of a failed run only the run itself. best_step: of the best evaluation; None: the last one is taken."""
    import wandb

    if status == "failed":  # the ranks are ended within seconds
        record_run(wandb_run, run, recipe, status, summary)
        return
    if why := left_out(run):
        tables.say(f"W&B has no table of how each example fared: {why}")
    for name, columns, rows in tables_at_end(run):
        tables.log(wandb_run, name, None, columns, rows, len(rows))
    steps = [step for _, step in prediction_files(run.predictions)]
    chosen = best_step if best_step in steps else steps[-1] if steps else None
    if chosen is not None:
        for kind, curves in zip(("roc", "pr"), curves_at(run, chosen), strict=True):
            if curves:
                wandb_run.log({f"curves/{kind}": draw_curves(wandb, kind, curves)})
    record_run(wandb_run, run, recipe, status, summary)
    if status == "done":
        record_model(wandb_run, run, recipe, summary)
