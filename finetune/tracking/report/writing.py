"""report.html: one file that summarizes a run, made from the run folder alone, while it trains or afterwards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.recipe.secrets import mask
from finetune.terminal import printable
from finetune.tracking.atomic_files import publish_text
from finetune.tracking.example_history import example_history
from finetune.tracking.journal import read_rows
from finetune.tracking.judgement.verdict import Verdict
from finetune.tracking.report.confusion import confusion_cells
from finetune.tracking.report.costs import costs
from finetune.tracking.report.curves import Curves, draw_charts, draw_scores
from finetune.tracking.report.data import class_balance, data_changes, draw_lengths
from finetune.tracking.report.headline import (
    best_evaluation,
    duration,
    headline,
    metric_of,
    mode_of,
    subtitle,
)
from finetune.tracking.report.judging import Judgement, judge_run
from finetune.tracking.report.page import environment, script
from finetune.tracking.report.parts import Parts, sound_facts
from finetune.tracking.report.pictures import Thumbnails
from finetune.tracking.report.samples import pair_samples
from finetune.tracking.report.sessions import timeline
from finetune.tracking.report.tables import (
    Table,
    choose_tables,
    clip,
    shorten,
    weakest_first,
    with_pictures,
)
from finetune.tracking.retention import stored_checkpoints
from finetune.tracking.run import Run
from finetune.tracking.run_summary import failure_of, status_of
from finetune.tracking.series import collect_series
from finetune.tracking.shared_rows import shared_lines
from finetune.units import format_bytes, format_figure

HISTORY_ROWS = 30
_DRAWN = ("lengths", "class_balance")  # facts that have sections of their own
_OWN_SECTION = ("confusion_matrix", "per_class", "samples", "worst_examples")


def write_report(run_dir: Path) -> Path:
    """Write <run_dir>/report.html and return its path. The run may be unfinished, or have no evaluations.

    The page needs no network; its only script is page.js, which a policy inside the page allows by its hash.
    Raises: UserError if run_dir is no run folder; FinetuneError if the file cannot be written.
    """
    run = Run.open(run_dir)
    parts = Parts()
    facts = sound_facts(run.read(), parts)
    curves = collect_series(read_rows(run.metrics_file))
    metric = metric_of(run, facts)
    best = best_evaluation(run, facts, curves, metric)
    best_step = None if best is None else best[0]
    unknown = Judgement(Verdict("unknown", "The run could not be judged."))
    judgement = parts.make("verdict", lambda: judge_run(run, curves, metric, mode_of(run, metric), best), unknown)
    code, digest = script()
    page = (
        environment()
        .get_template("page.html.j2")
        .render(
            name=facts.get("name", run.name),
            id=run.id,
            status=status_of(run, facts),
            failure=failure_of(facts) if facts.get("status") == "failed" else "",
            subtitle=parts.make("subtitle", lambda: subtitle(facts), []),
            judgement=judgement,
            best_step=best_step,
            **_figures(parts, run, facts, curves, metric, best, judgement),
            **_tables(parts, run, best_step, Thumbnails(run, str(facts.get("task")))),
            **_circumstances(parts, run, facts),
            wandb=facts.get("wandb", {}),
            missing=parts.missing,
            figure=format_figure,
            script=code,
            script_hash=digest,
        )
    )
    publish_text(run.report_file, printable(page))
    return run.report_file


def _figures(
    parts: Parts,
    run: Run,
    facts: dict[str, Any],
    curves: Curves,
    metric: str,
    best: tuple[int, float, float] | None,
    judgement: Judgement,
) -> dict[str, Any]:
    """Headline figures, curves and costs."""
    interval = next((row.interval for row in judgement.rows if row.metric == metric), None)
    return {
        "cards": parts.make("headline", lambda: headline(run, facts, curves, metric, best, interval), []),
        "charts": parts.make("curves", lambda: draw_charts(curves, facts), []),
        "scores": parts.make("scores", lambda: draw_scores(judgement), []),
        "costs": parts.make("cost", lambda: costs(facts, curves, duration(facts, curves)), []),
        "sessions": parts.make("starts and stops", lambda: timeline(facts, time.time()), []),
    }


def _tables(parts: Parts, run: Run, best_step: int | None, thumbnails: Thumbnails) -> dict[str, Any]:
    """Samples and the tables of the best evaluation."""
    tables = choose_tables(run, best_step)
    return {
        "confusion": parts.make("confusion matrix", lambda: confusion_cells(tables.get("confusion_matrix")), None),
        "per_class": parts.make("classes", lambda: clip(weakest_first(tables.get("per_class"))), None),
        "samples": parts.make("samples", lambda: pair_samples(run, thumbnails), []),
        "legend": thumbnails.legend,
        "history": parts.make("examples over the evaluations", lambda: _history(run), None),
        "worst": parts.make("worst examples", lambda: with_pictures(tables.get("worst_examples"), thumbnails), None),
        "other": {
            name: parts.make(name, lambda table=table: clip(table), None)  # type: ignore[misc]
            for name, table in tables.items()
            if name not in _OWN_SECTION
        },
    }


def _circumstances(parts: Parts, run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """Data, checkpoints, recipe, machine."""
    shown = {key: one for key, one in facts.get("facts", {}).items() if key not in _DRAWN}
    return {
        "lengths": parts.make("lengths", lambda: draw_lengths(facts), None),
        "balance": parts.make("classes of the data", lambda: class_balance(facts), None),
        "data_changes": parts.make("changes of the data", lambda: data_changes(facts), []),
        "shared": parts.make("rows that are in train as well", lambda: shared_lines(facts.get("facts", {})), []),
        "checkpoints": parts.make("checkpoints", lambda: list_checkpoints(run), []),
        "machine": parts.make("machine", lambda: _machine(facts), {}),
        "versions": facts.get("versions", {}),
        "facts": parts.make("facts", lambda: _flat(shown), {}),
        "recipe": parts.make("recipe", lambda: _recipe(run), ""),
    }


def _recipe(run: Run) -> str:
    return mask(run.recipe_file.read_text(encoding="utf-8")) if run.recipe_file.is_file() else ""


def _history(run: Run) -> dict[str, Any] | None:
    """The examples that got worse over the evaluations, and those that were never learned."""
    found = example_history(run, HISTORY_ROWS)
    return clip(Table(0, *found)) if found is not None else None


def list_checkpoints(run: Run) -> list[dict[str, str]]:
    """Complete checkpoints by step: name, size, and whether it is the latest or the best."""
    return [
        {"name": one.path.name, "size": format_bytes(one.num_bytes), "marks": ", ".join(one.labels)}
        for one in stored_checkpoints(run)
        if one.complete
    ]


def _machine(facts: Mapping[str, Any]) -> dict[str, str]:
    machine = dict(facts.get("machine", {}))
    if "memory_bytes" in machine:
        machine["memory"] = format_bytes(machine.pop("memory_bytes"))
    gpus = machine.pop("gpus", None) or []
    machine["GPUs"] = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "none"
    return {key: str(value) for key, value in machine.items()}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"examples": {"train": 5}} -> {"examples.train": "5"}."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if key == "versions":
            continue
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        elif isinstance(item, int) and not isinstance(item, bool):
            flat[f"{prefix}{key}"] = f"{item:,}"
        else:
            flat[f"{prefix}{key}"] = shorten(item)
    return flat
