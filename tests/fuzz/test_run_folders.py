"""Run folders with odd values in every file that the report, the comparison and the list of runs read: each gives a page, or
a UserError that can be shown. Few inputs here; `python -m tests.fuzz` tries for ten minutes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.errors import UserError
from finetune.tracking.comparison import compare_runs
from finetune.tracking.dashboard import read_logged
from finetune.tracking.report import write_report
from finetune.tracking.report.comparing import write_comparison
from finetune.tracking.run_summary import find_runs

from .mutations import mutated_bytes, mutated_tree
from .test_inputs import INPUTS, SAME, readable

fuzz = settings(
    max_examples=max(4, INPUTS // 5),
    derandomize=SAME,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
ROWS = [
    {"split": split, "step": step, "epoch": step / 4, "loss": 1 / step, "accuracy": 0.5, "time": 10.0 + step,
     "units_per_second": 4.0, "step_seconds": 0.5, "compute_seconds": 0.25, "memory_bytes": 1e9}
    for step in (1, 2, 3, 4) for split in ("train", "validation")
]  # fmt: skip
SCORES = [[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]]
PREDICTIONS = [
    {"id": i, "loss": 0.5, "weight": 1, "prediction": i % 2, "reference": 1, "scores": SCORES[i], "text": "a"}
    for i in range(3)
]
FILES: dict[str, Any] = {
    "run.json": {
        "id": "x", "name": "n", "task": "text_classification", "created": "2026-11-27T23:01:33+00:00", "status": "stopped",
        "process": {"host": "h", "pid": 1, "started": 1.0}, "machine": {"host": "h", "memory_bytes": 2**34, "gpus": ["G"]},
        "sessions": [{"started": 1.0, "ended": 9.5, "start_step": 0, "step": 4, "status": "stopped"}, {"started": 12.0}],
        "versions": {"torch": "2"}, "facts": {"model": "m", "ranks": 2, "parameters": 1000, "unit": "example",
        "device": "cpu", "total_steps": 8, "examples": {"train": 5}}, "wandb": {"url": "https://x", "id": "i"},
        "summary": {"best_metric": "accuracy", "best_value": 0.5, "best_step": 4, "steps": 4, "test_loss": 0.5},
        "data": {"validation": {"rows": 3, "content": "abc", "files": [{"name": "v.csv", "rows": 3}]}},
    },
    "artifacts/artifacts.json": {"classes": {"names": ["a", "b"]}},
    "tables/confusion_matrix-step-00000004.json": {"columns": ["reference", "a", "b"], "rows": [["a", 1, 0], ["b", 1, 1]]},
    "tables/per_class-step-00000004.json": {"columns": ["class", "f1"], "rows": [["a", 0.5], ["b", 0.25]]},
    "tables/samples-step-00000004.json": {
        "columns": ["id", "input", "predicted", "picture"], "rows": [[0, "a", "b", "predictions/pictures/a.png"]]},
    "tables/worst_examples-step-00000004.json": {"columns": ["id", "label", "predicted"], "rows": [[1, "a", "b"]]},
}  # fmt: skip
LINES = {"metrics.jsonl": ROWS}
LINES |= {f"predictions/validation-step-{step:08d}.jsonl": PREDICTIONS for step in (2, 4)}
RECIPE = "name: n\ntask: text_classification\nevaluation: {best: accuracy, best_mode: max}\ntracking: {group: g}\n"


def write_run(folder: Path, name: str = "", content: bytes = b"") -> Path:
    """A run folder, one file of which has other content."""
    files = {path: json.dumps(tree).encode() for path, tree in FILES.items()}
    files |= {path: b"".join(json.dumps(row).encode() + b"\n" for row in rows) for path, rows in LINES.items()}
    files |= {"recipe.yaml": RECIPE.encode(), "checkpoints/best": b"step-00000004", "checkpoints/latest": b"x"}
    for path, text in (files | ({name: content} if name else {})).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text)
    return folder


def read_everywhere(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        run, other = write_run(root / "run", name, content), write_run(root / "other")
        assert len(find_runs(root)) == 2
        verbs: tuple[Callable[[], object], ...] = (
            lambda: write_report(run),
            lambda: write_comparison(compare_runs([run, other]), root / "page.html"),
            lambda: read_logged([run]),
        )
        for verb in verbs:
            try:
                verb()
            except UserError as error:
                readable(error)


def test_the_run_as_it_should_be() -> None:
    with tempfile.TemporaryDirectory() as place:
        run = write_run(Path(place) / "run")
        page = write_report(run).read_text()
        assert "Most frequent" in page or "Confusion matrix" in page
        assert "examples.train" in page


@pytest.mark.parametrize("name", FILES)
@fuzz
@given(data=st.data())
def test_odd_values(name: str, data: st.DataObject) -> None:
    tree = data.draw(mutated_tree(FILES[name]))
    read_everywhere(name, json.dumps(tree).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("name", LINES)
@fuzz
@given(data=st.data())
def test_odd_lines(name: str, data: st.DataObject) -> None:
    rows = data.draw(mutated_tree(LINES[name], changes=6))
    lines = rows if isinstance(rows, list) else [rows]
    read_everywhere(name, b"".join(json.dumps(row).encode("utf-8", "surrogatepass") + b"\n" for row in lines))


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "recipe.yaml", "checkpoints/best"])
@fuzz
@given(data=st.data())
def test_odd_bytes(name: str, data: st.DataObject) -> None:
    tree = {**FILES, "recipe.yaml": None, "checkpoints/best": None}.get(name)
    original = json.dumps(tree).encode() if tree else RECIPE.encode() if name == "recipe.yaml" else b"step-00000004"
    if name in LINES:
        original = b"".join(json.dumps(row).encode() + b"\n" for row in LINES[name])
    read_everywhere(name, data.draw(mutated_bytes(original)))
