"""An evaluation or a prediction as one W&B run: what was asked, its figures and tables, and the model that it used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from finetune.recipe.secrets import mask
from finetune.terminal import printable
from finetune.tracking.atomic_files import plain
from finetune.tracking.run import Run
from finetune.tracking.run_names import MAX_VALUE
from finetune.tracking.wandb_lineage import training_run, use_model
from finetune.tracking.wandb_run import describe_place, is_off, open_run, reason_of
from finetune.tracking.wandb_tables import make_table

PROJECT = "finetune"  # of a model without a recipe

Tables = Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]


def log_job(
    kind: Literal["evaluate", "predict"],
    folder: Path,
    mode: str,
    config: Mapping[str, Any],
    figures: Mapping[str, Any],
    say: Callable[[str], None],
    *,
    model: Path,
    tables: Tables | None = None,
) -> None:
    """Record a W&B run of job type `kind` in `folder`/wandb.

    mode: as in tracking.wandb of a recipe. model: what was asked; of a run folder its project, entity and group are taken,
    and the W&B run is linked to its model. Never fails: the journal of the command has the same figures.
    """
    if is_off(mode):
        return
    try:
        import wandb

        trained = training_run(model)
        tracking = trained[1] if trained is not None else {}
        run = open_run(
            folder,
            mode,
            say,
            name=_name(kind, model, trained[0] if trained is not None else None, config),
            project=str(tracking.get("project") or PROJECT),
            entity=tracking.get("entity") or None,
            group=printable(str(tracking.get("group") or trained[0].name)) if trained is not None else None,
            job_type=kind,
            config=mask(plain(dict(config))),
        )
        if trained is not None:
            run.config.update({"training_run": trained[0].id})
            if missing := use_model(run, trained[0]):
                run.config.update({"not_recorded": missing})
                say(f"W&B does not record {missing}")
        values: dict[str, Any] = mask(plain(dict(figures)))
        for name, (columns, rows) in (tables or {}).items():
            values[f"tables/{name}"], cut = make_table(wandb, columns, rows, len(rows))
            if cut:
                say(f"W&B: tables/{name} has {cut}")
        run.log(values)
        _, line = describe_place(run)
        run.finish()
        say(line)
    except Exception as error:
        say(f"W&B is disabled ({type(error).__name__}: {reason_of(error)})")


def _name(kind: str, model: Path, trained: Run | None, config: Mapping[str, Any]) -> str:
    """The command, the model and what it was asked: "evaluate quickstart 20260101-120000-abcdef best test"."""
    known = f"{trained.name} {trained.id}" if trained is not None else model.name
    asked = [config.get(key) for key in ("checkpoint", "split", "data", "output")]
    words = [", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value) for value in asked if value]
    return printable(" ".join([kind, known, *(Path(word).name[:MAX_VALUE] for word in words)]))
