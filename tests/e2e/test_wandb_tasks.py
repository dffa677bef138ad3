"""Proves for every task what W&B holds of a training: two ranks, recorded offline, read back with wandb's own reader.

Counted: rows, axes, tables, pictures and their boxes, curves, artifacts, the alert. And the workspace of `finetune dashboard`
asks for keys that were logged, in the sections that the task has something for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from finetune.tasks import CARDS
from finetune.tracking.dashboard import build_workspace, read_logged, specification
from finetune.tracking.journal import list_tables, read_rows
from finetune.tracking.run import Run
from tests.contract.examples import EXAMPLES, FAST
from tests.e2e.inside import train_here

pytestmark = pytest.mark.timeout(600)

FIRST = {one.task: one for one in reversed(EXAMPLES)}  # the first example of each task
STEPS, EVERY = 4, 2
EVERY_TASK = {
    "samples": 2,
    "worst_examples": 2,
    "test_worst_examples": 1,
    "predictions": 2,
    "examples": 1,
    "before_after": 1,
}
OF_CLASSES = {
    **{"confusion_matrix": 2, "per_class": 2, "test_confusion_matrix": 1, "test_per_class": 1},
    "examples_per_class": 1,
}
TABLES: dict[str, dict[str, int]] = {
    "text_classification": OF_CLASSES,
    "image_classification": OF_CLASSES,
    "token_classification": {"per_entity": 2, "test_per_entity": 1},
    "object_detection": {"per_class_map": 2, "test_per_class_map": 1},
}
PICTURES = {"samples": 2, "worst_examples": 2, "test_worst_examples": 1}  # of vision tasks: history rows that have them
KINDS = {"dataset": 3, "base-model": 1, "run": 1, "model": 1, "wandb-run-incremental-table": 2}


@dataclass(frozen=True)
class Recorded:
    """A run, and the records of its offline W&B run."""

    task: str
    run: Run

    @cached_property
    def folder(self) -> Path:
        [folder] = (self.run.path / "wandb").glob("offline-run-*")
        return folder

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._inspect().splitlines()]

    @cached_property
    def whole(self) -> dict[str, Any]:
        """{"config", "summary"}."""
        found: dict[str, Any] = json.loads(self._inspect("--summary"))
        return found

    def _inspect(self, *flags: str) -> str:
        command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", *flags, "--json", str(self.folder)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        return [one["history"]["item"] for one in self.records if one["type"] == "history"]

    def counts(self, kind: str) -> dict[str, int]:
        """kind: "tables", "pictures" or "curves" -> {name: rows of the history that have it}."""
        found: Counter[str] = Counter()
        for row in self.history:
            found.update({key.split(".")[0].removeprefix(f"{kind}/") for key in row if key.startswith(f"{kind}/")})
        return dict(found)

    @cached_property
    def keys(self) -> set[str]:
        return {key.split(".")[0] for row in self.history for key in row}


@pytest.fixture(
    scope="module", params=[pytest.param(task, marks=[] if task in FAST else pytest.mark.slow) for task in FIRST]
)
def recorded(request, pool, tmp_path_factory) -> Recorded:
    folder = tmp_path_factory.mktemp(request.param)
    recipe = FIRST[request.param].recipe(
        folder,
        training={"precision": "fp32", "steps": STEPS, "global_batch": 4, "learning_rate": 1e-3},
        evaluation={"every": EVERY, "samples": 2},
        tracking={"log_every": 1, "wandb": "offline", "alerts": ["done", "failed"]},
    )
    recipe["data"] |= dict.fromkeys(("validation", "test"), recipe["data"]["train"])
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    pool.run(2, train_here, str(folder), "recipe.yaml", str(folder / "run"), [], "auto", {})
    return Recorded(request.param, Run.open(folder / "run", own=True))


def test_each_task_is_recorded():
    assert set(FIRST) == set(CARDS) and len(FIRST) == 9


def test_rows_equal_the_journal(recorded):
    rows = list(read_rows(recorded.run.metrics_file))
    assert Counter(row["split"] for row in rows) == {"train": STEPS, "validation": STEPS // EVERY, "test": 1}
    known = {row["_step"]: {} for row in recorded.history}
    for row in recorded.history:
        known[row["_step"]] |= row
    compared = 0
    for row in rows:
        for key in row.keys() - {"step", "split", "time", "epoch"}:
            assert known[row["step"]][f"{row['split']}/{key}"] == row[key], (row["step"], key)
            compared += 1
    assert compared > 60 and {"memory_bytes_rank_0", "memory_bytes_rank_1", "memory_bytes_max"} <= rows[0].keys()
    splits = [key for row in known.values() for key in row if key.split("/")[0] in ("train", "validation", "test")]
    assert len(splits) == compared, "and W&B has no figure that the journal lacks"


def test_axes_and_best_values(recorded):
    metrics = [one["metric"] for one in recorded.records if one["type"] == "metric"]
    axes = {one.get("glob_name") or one["name"]: one.get("step_metric") for one in metrics}
    assert {"train/*", "validation/*", "test/*"} <= {name for name, axis in axes.items() if axis == "step"}
    plan = json.loads(recorded.run.plan_file.read_text())["training"]
    best, mode = f"validation/{plan['best_metric']}", plan["best_mode"]
    directed = {one["name"]: one["summary"] for one in metrics if "summary" in one}
    assert directed[best] == {mode: True} and directed["validation/loss"] == {"min": True}
    values = [row[plan["best_metric"]] for row in read_rows(recorded.run.metrics_file) if row["split"] == "validation"]
    assert len(values) == 2
    summary = recorded.whole["summary"]
    found = summary[best][mode] if isinstance(summary[best], dict) else summary[f"{best}.{mode}"]
    assert found == (max if mode == "max" else min)(values)


def test_tables_are_counted_and_hold_what_the_run_folder_holds(recorded):
    assert recorded.counts("tables") == {**EVERY_TASK, **TABLES.get(recorded.task, {})}
    stored = 0
    for path, name, step in list_tables(recorded.run.tables):
        [file] = recorded.folder.glob(f"files/media/table/tables/{name}_{step}_*.table.json")
        ours, theirs = json.loads(path.read_text()), json.loads(file.read_text())
        assert theirs["columns"] == ours["columns"] and len(theirs["data"]) == len(ours["rows"]) > 0
        stored += 1
    assert stored == sum(recorded.counts("tables").values()) - sum(
        count for name, count in recorded.counts("tables").items() if name in MADE
    )
    columns, rows = last_table(recorded, "examples")
    assert len(rows) == 8 and columns[:4] == ["id", "what became of it", "first loss", "last loss"]
    assert columns[4:6] == ["step 2", "step 4"] and len({row[0] for row in rows}) == 8
    columns, rows = last_table(recorded, "before_after")
    assert columns[0] == "id" and columns[-2:] == ["before", "after"] and "expected" in columns and len(rows) == 2
    assert len(columns) >= 5 and all(any(row[1:-3]) for row in rows)
    increments = sorted(recorded.folder.glob("files/media/table/tables/predictions_*.table.json"))
    both = [json.loads(file.read_text()) for file in increments]
    assert sorted(row[0] for table in both for row in table["data"]) == [2] * 8 + [4] * 8, (
        "each evaluation is sent once"
    )
    if recorded.task in TABLES and "examples_per_class" in TABLES[recorded.task]:
        columns, rows = last_table(recorded, "examples_per_class")
        assert columns[:2] == ["class", "examples"] and sorted(row[:2] for row in rows) == sorted(
            [[name, 4] for name in CLASSES[recorded.task]]
        )


MADE = ("predictions", "examples", "before_after", "examples_per_class")  # by the mirror, of what the run folder holds
CLASSES = {"text_classification": ("bad", "good"), "image_classification": ("high", "low")}


def last_table(recorded: Recorded, name: str) -> tuple[list[str], list[list[Any]]]:
    [file] = recorded.folder.glob(f"files/media/table/tables/{name}_[0-9]*.table.json")
    table = json.loads(file.read_text())
    return table["columns"], table["data"]


def test_pictures_and_their_boxes(recorded):
    shows = CARDS[recorded.task].batches.decodes
    assert recorded.counts("pictures") == (PICTURES if shows else {})
    images = list(recorded.folder.glob("files/media/images/pictures/*.png"))
    names = Counter(path.name.split("_")[0] for path in images)
    assert (names["samples"], names["worst"], names["test"]) == ((4, 16, 8) if shows else (0, 0, 0))
    boxes = list(recorded.folder.glob("files/media/metadata/boxes2D/pictures/*.json"))
    if recorded.task != "object_detection":
        assert not boxes
        return
    assert len(boxes) >= 16 + 8, (
        "at least those that are there: files are named by content, and some images have no box"
    )
    drawn = Counter(one["box_caption"] for file in boxes for one in json.loads(file.read_text())["box_data"])
    truth = Counter(BOXES)
    assert {name: drawn[name] for name in truth} == {name: 3 * count for name, count in truth.items()}
    assert all(" " in name for name in drawn.keys() - truth.keys()), "what was found has its score"


BOXES = [["red", "green"][(row + box) % 2] for row in range(8) for box in range(0 if row == 3 else 1 + row % 2)]


def test_curves_of_the_best_evaluation(recorded):
    of_classes = recorded.task in CLASSES
    assert recorded.counts("curves") == ({"roc_table": 1, "pr_table": 1} if of_classes else {})
    for kind in ("roc", "pr") if of_classes else ():
        [file] = recorded.folder.glob(f"files/media/table/curves/{kind}_table_*.table.json")
        table = json.loads(file.read_text())
        assert len(table["data"]) >= 2 and all(0 <= value <= 1 for row in table["data"] for value in row[1:])


def test_artifacts_and_the_alert(recorded):
    artifacts = [one["artifact"] for one in recorded.records if one["type"] == "artifact"]
    tables = sum(recorded.counts("tables").values()) + sum(recorded.counts("curves").values()) - 2
    assert Counter(one["type"] for one in artifacts) == {**KINDS, "run_table": tables}
    by_kind = {one["type"]: one for one in artifacts}
    assert set(by_kind["model"]["aliases"]) == {"best", "latest", recorded.run.id}
    assert {entry["path"] for entry in by_kind["run"]["manifest"]["contents"]} == {
        "recipe.yaml",
        "plan.json",
        "metrics.jsonl",
    }
    digests = {json.loads(one["metadata"])["content"] for one in artifacts if one["type"] == "dataset"}
    assert digests == {record["content"] for record in recorded.run.read()["data"].values()}
    alerts = [one["alert"] for one in recorded.records if one["type"] == "alert"]
    assert [alert["title"] for alert in alerts] == [f"tiny-{recorded.task}: done"]
    assert recorded.run.id in alerts[0]["text"]


def test_the_workspace_asks_for_what_was_logged(recorded):
    pytest.importorskip("wandb_workspaces")
    workspace = build_workspace(read_logged([recorded.run.path]), name="n", entity="e", whole_group=False)
    sections, asked = [], set()
    for section in specification(workspace)["spec"]["section"]["panelBankConfig"]["sections"]:
        sections.append(section["name"])
        for panel in section["panels"]:
            asked |= panel_keys(panel["config"])
    expected = ["Loss and metrics", "Where a step's seconds go", "Memory per rank", "Samples before and after"]
    classes = recorded.task in ("text_classification", "image_classification", "token_classification")
    expected += ["Confusion matrix and classes"] if classes else []
    expected += ["Worst examples", "Predictions of each evaluation"]
    expected += ["ROC, precision and recall"] if recorded.task in CLASSES else []
    expected += ["Pictures"] if CARDS[recorded.task].batches.decodes else []
    expected += ["Other tables"] if recorded.task == "object_detection" else []
    assert sections == expected
    assert asked and asked <= recorded.keys, asked - recorded.keys
    assert {"train/memory_bytes_rank_0", "train/memory_bytes_rank_1", "tables/before_after"} <= asked
    assert {f"tables/{name}" for name in recorded.counts("tables")} <= asked, "no table is without a panel"


def panel_keys(config: dict[str, Any]) -> set[str]:
    """Keys of the history that a panel shows."""
    keys = {*config.get("metrics", []), *config.get("mediaKeys", [])}
    if "panel2Config" in config:
        keys.add(config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"])
    if "userQuery" in config:
        text = json.dumps(config["userQuery"])
        keys |= {f"curves/{kind}_table" for kind in ("roc", "pr") if f"curves/{kind}_table" in text}
    return keys
