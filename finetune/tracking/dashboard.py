"""A W&B workspace for runs: sections by what they have logged, built without a network, saved with one.

Built with `wandb-workspaces` (the extra `dashboards`). What is laid out is read from metrics.jsonl and tables/ of the run
folders, which W&B mirrors: a section exists only if a run has something to show in it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, UserError
from finetune.metrics.catalogue import CATALOGUE
from finetune.recipe.identity import stored_values
from finetune.recipe.secrets import mask_text
from finetune.tasks import CARDS
from finetune.tracking.atomic_files import plain
from finetune.tracking.journal import list_tables, read_rows, read_table
from finetune.tracking.run import Run
from finetune.tracking.wandb_examples import CHARTS, logged_of_examples
from finetune.tracking.wandb_tables import find_pictures

PACKAGE, EXTRA = "wandb_workspaces", "dashboards"

# Parts of a step, in the order in which they are stacked.
STEP_PARTS = ("compute_seconds", "communication_seconds", "slowest_seconds", "host_seconds", "data_seconds")
SAMPLES = "Samples before and after"
TABLE_SECTIONS = {
    SAMPLES: ("before_after", "samples"),
    "Confusion matrix and classes": ("confusion_matrix", "per_class", "per_entity", "examples_per_class"),
    "Worst examples": ("worst_examples", "examples"),
    "Predictions of each evaluation": ("predictions",),
}
NOT_METRICS = ("step", "epoch", "split", "time", "loss", "data_version")
GPU_MEMORY = r"system\.gpu\.\d+\.memoryAllocatedBytes"  # W&B's own measurement, one line per GPU, which is one rank


@dataclass(frozen=True)
class Logged:
    """What runs have logged. ids: of their W&B runs. figures: split -> names, in the order of their first row.

    tables: names without "tables/". pictures: tables whose rows name image files. curves: "roc", "pr". best, mode: the metric
    of the best checkpoint, and whether its largest value is the best one ("max") or its smallest ("min"). not_uploaded: runs
    that were recorded offline, or without W&B.
    """

    project: str
    entity: str
    group: str
    task: str
    best: str
    mode: str
    ids: tuple[str, ...]
    figures: Mapping[str, tuple[str, ...]]
    tables: tuple[str, ...]
    pictures: tuple[str, ...]
    curves: tuple[str, ...]
    on_gpu: bool
    not_uploaded: tuple[Path, ...]


def read_logged(folders: Sequence[Path]) -> Logged:
    """Raises: UserError for runs of several W&B projects, and for a run folder that cannot be read."""
    runs = [Run.open(folder) for folder in folders]
    facts = [run.read() for run in runs]
    recipes = [stored_values(run.recipe_file) for run in runs]
    tracking = [_section(recipe, "tracking") for recipe in recipes]
    projects = sorted({(str(one.get("project") or ""), str(one.get("entity") or "")) for one in tracking})
    if len(projects) > 1:
        raise UserError(
            f"the runs are in {len(projects)} W&B projects: {', '.join('/'.join(filter(None, p[::-1])) for p in projects)}",
            remedy="A workspace shows the runs of one project: name runs of the same tracking.project and tracking.entity.",
        )
    figures: dict[str, dict[str, None]] = {}
    tables: dict[str, bool] = {}
    curves: dict[str, None] = {}
    for run in runs:
        for row in read_rows(run.metrics_file):
            figures.setdefault(str(row.get("split", "train")), {}).update(dict.fromkeys(row))
        for path, name, _ in list_tables(run.tables):
            tables[name] = tables.get(name, False) or _has_pictures(run, path)
        made, drawn = logged_of_examples(run)
        tables |= dict.fromkeys(made, False)
        curves |= dict.fromkeys(drawn)
    groups = {str(one.get("group") or fact.get("name") or "") for one, fact in zip(tracking, facts, strict=True)}
    wandb = [fact.get("wandb") or {} for fact in facts]
    return Logged(
        project=projects[0][0],
        entity=projects[0][1],
        group=groups.pop() if len(groups) == 1 else "",
        task=" and ".join(sorted({str(fact.get("task") or "training") for fact in facts})),
        best=(best := _best(recipes[0]))[0],
        mode=best[1],
        ids=tuple(str(one.get("id") or run.id) for one, run in zip(wandb, runs, strict=True)),
        figures={split: tuple(names) for split, names in figures.items()},
        tables=tuple(sorted(tables)),
        pictures=tuple(sorted(name for name, has in tables.items() if has)),
        curves=tuple(curves),
        on_gpu=any((fact.get("facts") or {}).get("device") == "cuda" for fact in facts),
        not_uploaded=tuple(run.path for one, run in zip(wandb, runs, strict=True) if not one.get("url")),
    )


def build_workspace(logged: Logged, *, name: str, entity: str, whole_group: bool) -> Any:
    """The workspace, without a network. whole_group: of all runs of the W&B group, those to come among them; otherwise of
    these runs alone.

    Raises: UserError if wandb-workspaces is not installed.
    """
    check_installed()
    from wandb_workspaces import expr, workspaces

    ids = ", ".join(f"'{one}'" for one in logged.ids)
    query = f"Metric('Group') == '{logged.group}'" if whole_group else f"Metric('ID') in [{ids}]"
    columns = [
        f"summary:{_best_key(logged)}",
        "summary:status",
        "config:training.learning_rate",
        "config:training.global_batch",
    ]
    return workspaces.Workspace(
        entity=entity,
        project=logged.project,
        name=name,
        sections=[section for section in _sections(logged) if section.panels],
        settings=workspaces.WorkspaceSettings(x_axis="Step"),
        runset_settings=workspaces.RunsetSettings(
            filters=query,
            order=[expr.Ordering(expr.Metric("CreatedTimestamp"), ascending=False)],
            pinned_columns=["run:displayName", *columns],
        ),
    )


def specification(workspace: Any) -> dict[str, Any]:
    """The workspace as W&B stores it. `wandb-workspaces` has no public call for it: this one is what its `save` sends."""
    view = workspace._to_model().model_dump(by_alias=True, exclude_none=True)
    tree: dict[str, Any] = plain(view)
    return tree


def save_workspace(workspace: Any) -> str:
    """Save it as a new view of the project; its address. Raises: FinetuneError with W&B's reason."""
    try:
        workspace.save()
        return str(workspace.url)
    except Exception as error:  # of the network, of the server, of an account without access
        reason = (mask_text(str(error)).strip() or type(error).__name__).splitlines()[0]
        raise FinetuneError(
            f"W&B did not save the workspace: {reason}",
            where=f"{workspace.entity}/{workspace.project}",
            remedy="Check the network, the account and tracking.entity; --spec FILE needs neither.",
        ) from None


def check_installed() -> None:
    """Raises: UserError that names the extra."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            "wandb-workspaces is not installed",
            where="finetune dashboard",
            remedy=f"Install the extra `{EXTRA}`: pip install 'finetune[{EXTRA}]'",
        )


def _best_key(logged: Logged) -> str:
    """The best value in a run's summary, where the mirror's `define_metric(summary=)` puts it."""
    return f"validation/{logged.best}.{logged.mode}"


def _sections(logged: Logged) -> list[Any]:
    from wandb_workspaces.reports.v2 import BarPlot, LinePlot, MediaBrowser, RunComparer
    from wandb_workspaces.workspaces import Section

    train, validation = logged.figures.get("train", ()), logged.figures.get("validation", ())
    metrics = sorted((one for one in validation if one not in NOT_METRICS), key=lambda one: one != logged.best)
    losses: list[Any] = [
        f"{split}/loss" for split in ("train", "validation") if "loss" in logged.figures.get(split, ())
    ]
    curves: list[Any] = [LinePlot(title="loss", y=losses)] if losses else []
    curves += [LinePlot(title=metric, y=[f"validation/{metric}"]) for metric in metrics]
    curves += [LinePlot(title=name, y=[f"train/{name}"]) for name in ("learning_rate", "grad_norm") if name in train]

    parts: list[Any] = [f"train/{part}" for part in STEP_PARTS if part in train]
    time: list[Any] = [LinePlot(title="seconds of a step", y=parts, plot_type="stacked-area")] if len(parts) > 1 else []
    time += [
        LinePlot(title=title, y=[f"train/{name}"])
        for name, title in (
            ("step_seconds", "step, seconds"),
            ("units_per_second", "throughput"),
            ("padding_share", "padding"),
            ("cost_imbalance", "cost of the most loaded rank over the mean"),
            ("bubble", "idle in the pipeline"),
        )
        if name in train
    ]
    ranks: list[Any] = [f"train/{name}" for name in train if name.startswith("memory_bytes_rank_")]
    extremes: list[Any] = [f"train/{name}" for name in ("memory_bytes_max", "memory_bytes_min") if name in train]
    if not extremes and "memory_bytes" in train:  # one rank
        ranks = ["train/memory_bytes"]
    memory: list[Any] = [LinePlot(title="each rank, bytes", y=ranks)] if ranks else []
    memory += [LinePlot(title="largest and smallest rank, bytes", y=extremes)] if extremes else []
    memory += [LinePlot(title="each GPU, bytes (measured by W&B)", metric_regex=GPU_MEMORY)] if logged.on_gpu else []

    several = len(logged.ids) > 1
    compared: list[Any] = [BarPlot(title=f"best {logged.best}", metrics=[_best_key(logged)])] if several else []
    compared += [RunComparer(diff_only=True)] if several else []

    placed = {name for names in TABLE_SECTIONS.values() for name in names}
    others = [name for name in logged.tables if name.removeprefix("test_") not in placed]
    found = {title: _table_panels(logged, names) for title, names in TABLE_SECTIONS.items()}
    pictures: list[Any] = [MediaBrowser(title=name, media_keys=[f"pictures/{name}"]) for name in logged.pictures]
    return [
        Section(name="Loss and metrics", panels=curves, is_open=True),
        Section(name="Runs compared", panels=compared, is_open=True),
        Section(name="Where a step's seconds go", panels=time, is_open=True),
        Section(name="Memory per rank", panels=memory),
        *(Section(name=title, panels=panels, is_open=title == SAMPLES) for title, panels in found.items()),
        Section(name="ROC, precision and recall", panels=[_curve_panel(kind) for kind in logged.curves]),
        Section(name="Pictures", panels=pictures),
        Section(name="Other tables", panels=_table_panels(logged, others)),
    ]


def _table_panels(logged: Logged, names: Sequence[str]) -> list[Any]:
    """In the order of `names`; each followed by that of the test split."""
    from wandb_workspaces.reports.v2 import WeavePanelSummaryTable

    both = [one for name in names for one in dict.fromkeys((name, f"test_{name}")) if one in logged.tables]
    return [WeavePanelSummaryTable(table_name=f"tables/{name}") for name in both]


def _curve_panel(kind: str) -> Any:
    """The chart that the mirror logs as `curves/KIND`, over its table."""
    from wandb_workspaces.reports.v2 import CustomChart

    chart = CHARTS[kind]
    return CustomChart(
        query={"summaryTable": {"tableKey": f"curves/{kind}_table"}},
        chart_name=chart.spec,
        chart_fields=chart.fields,
        chart_strings=chart.strings,
    )


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = recipe.get(name)
    return section if isinstance(section, Mapping) else {}


def _best(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """The metric that chooses the best checkpoint, and max or min: what the recipe says, or else the task."""
    evaluation, card = _section(recipe, "evaluation"), CARDS.get(str(recipe.get("task")))
    name = str(evaluation.get("best") or (card.metrics.best if card is not None else "") or "loss")
    mode = evaluation.get("best_mode")
    if mode in ("max", "min"):
        return name, str(mode)
    return name, "min" if name == "loss" else (CATALOGUE[name].direction if name in CATALOGUE else None) or "max"


def _has_pictures(run: Run, path: Path) -> bool:
    """Whether rows of a table name image files, which the mirror logs as pictures."""
    try:
        columns, rows = read_table(path)
    except ValueError:
        return False
    return bool(find_pictures(run, columns, rows))
