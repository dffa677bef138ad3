"""Proves that CONTRIBUTING.md's "How to add" is true: in a copy of the package, one addition of each kind is the files and the
one entry that it names, and a training uses all of them. Engines, sources of steps and kinds of inputs: test_engine_seam.py,
tests/unit/training/test_loop.py and tests/unit/models/test_inputs.py.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.e2e import tiny
from tests.faults import surroundings

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 240  # a crowded machine

# File -> its text.
NEW_FILES = {
    "metrics/error_rate.py": '''
        """Error rate: fraction of examples predicted wrongly."""

        import numpy as np

        from finetune.metrics.metric import LocalMetric


        class ErrorRate(LocalMetric):
            higher_is_better = False

            def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
                predictions, references = inputs
                return float((predictions != references).mean()) if len(references) else None
        ''',
    "data/formats/piped.py": '''
        """Reader of lines with the columns of the first one, separated by |."""

        from finetune.data.bad_rows import BadRow


        def read_piped(path, source):
            lines = path.read_text(source.encoding).splitlines()
            names = lines[0].split("|")
            for number, line in enumerate(lines[1:], 2):
                cells = line.split("|")
                yield number, dict(zip(names, cells)) if len(cells) == len(names) else BadRow("other cells than columns")
        ''',
    "tracking/lines_tracker.py": '''
        """A tracker that writes its rows into a text file."""

        from finetune.events import SilentListener


        class Lines(SilentListener):
            def __init__(self, run, recipe, say):
                self.path = run.path / "lines.txt"

            def row(self, row):
                with self.path.open("a") as file:
                    file.write(f"{row['split']} {row['step']}\\n")
        ''',
    "inspection/checks/capitals.py": '''
        """capitals: texts in capitals only."""

        from finetune.inspection.findings import Finding


        def check(inspection):
            return [Finding("capitals", "info", "no text is in capitals")]
        ''',
    "app/greet.py": '''
        """`finetune greet`: says hello."""

        from finetune.terminal import print_line


        def greet(name):
            print_line(f"hello {name}")
        ''',
    "cli/greet.py": '''
        """`finetune greet`: say hello."""

        from finetune.cli.program import app, examples


        @app.command(short_help="Say hello.", epilog=examples("finetune greet Ada"))
        def greet(name: str) -> None:
            """Say hello to somebody."""
            from finetune.app import greet as verb

            verb.greet(name)
        ''',
}
# File -> (the line before, the entry).
ENTRIES = {
    "recipe/formats.py": (
        "FORMATS: Mapping[str, FormatSpec] = {",
        '    "piped": _text(f"{_HOME}.piped:read_piped", ".piped"),',
    ),
    "recipe/optimizers.py": (
        "_SPECS = (",
        '    OptimizerSpec("adamax", "torch.optim:Adamax", "Adam by the largest gradient", '
        'state=("exp_avg", "exp_inf"), step="host", decay="coupled L2", arguments=_ADAM),',
    ),
    "recipe/trackers.py": (
        "TRACKERS: Mapping[str, TrackerSpec] = {",
        '    "lines": TrackerSpec("finetune.tracking.lines_tracker:Lines", ("json",), "RUN/lines.txt"),',
    ),
    "cli/__init__.py": ("COMMANDS = (", '    "greet",'),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a copy of the package with the additions."""
    folder = tmp_path_factory.mktemp("copy")
    copy = folder / "finetune"
    shutil.copytree(ROOT / "finetune", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in NEW_FILES.items():
        assert not (copy / name).exists()
        (copy / name).write_text(dedent(text).lstrip())
    for name, (before, entry) in ENTRIES.items():
        text = (copy / name).read_text()
        assert text.count(f"{before}\n") == 1
        (copy / name).write_text(text.replace(f"{before}\n", f"{before}\n{entry}\n"))
    _add_task(copy / "tasks", "sorting")
    return folder


def _add_task(tasks: Path, name: str) -> None:
    """A folder with card.py, data.py and task.py: those of text_classification under another name."""
    (tasks / name).mkdir()
    for file in ("__init__.py", "card.py", "data.py", "task.py"):
        text = (tasks / "text_classification" / file).read_text()
        (tasks / name / file).write_text(text.replace("text_classification", name))


def run(package: Path, folder: Path, *args: str) -> str:
    """The output of a command of the copy."""
    environment = surroundings({"PYTHONPATH": str(package)})
    command = [sys.executable, "-m", "finetune", *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=MINUTES)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data in the new format, and a run that used every addition."""
    folder = tmp_path_factory.mktemp("additions")
    tiny.write_data(folder)
    for name in ("train", "validation"):
        with (folder / f"{name}.csv").open(newline="") as file:
            (folder / f"{name}.piped").write_text("\n".join("|".join(row) for row in csv.reader(file)))
    tiny.write_recipe(
        folder,
        task="sorting",
        data={"train": "train.piped", "validation": "validation.piped"},
        training={"global_batch": 16, "steps": 6, "learning_rate": 1e-3, "optimizer": "adamax"},
        parallel={"processes": 1, "deepspeed": "none"},
        evaluation={"every": 3, "metrics": ["accuracy", "error_rate"], "best": "error_rate"},
        tracking={"wandb": "off", "log_every": 1, "also": ["lines"]},
    )
    run(package, folder, "train", "tiny.yaml", "--run-dir", "run")
    return folder


def test_a_task_a_format_an_optimizer_a_metric_and_a_tracker_train(trained: Path) -> None:
    evaluated = tiny.rows(trained / "run", "validation")
    assert [row["step"] for row in evaluated] == [3, 6]
    assert all(abs(row["accuracy"] + row["error_rate"] - 1) < 1e-9 for row in evaluated)
    assert len(tiny.losses(trained / "run")) == 6
    assert (trained / "run" / "lines.txt").read_text().split("\n").count("validation 3") == 1
    artifacts = json.loads((trained / "run" / "artifacts" / "artifacts.json").read_text())
    assert artifacts["task"] == "sorting" and artifacts["classes"]["names"] == ["bad", "good"]
    stored = list((trained / "run").glob("checkpoints/step-*/*.safetensors"))
    assert any(b"exp_inf" in path.read_bytes() for path in stored), "the optimizer's state is saved"


def test_a_finding_is_reported(package: Path, trained: Path) -> None:
    assert "no text is in capitals" in run(package, trained, "inspect", "tiny.yaml")


def test_a_command_runs_and_is_listed(package: Path, tmp_path: Path) -> None:
    assert run(package, tmp_path, "greet", "Ada") == "hello Ada\n"
    listing = run(package, tmp_path, "--help")
    assert "greet" in listing and "Say hello." in listing


def test_the_schema_and_the_starter_know_the_additions(package: Path, tmp_path: Path) -> None:
    run(package, tmp_path, "recipes", "schema", "--output", "schema.json")
    text = (tmp_path / "schema.json").read_text()
    assert all(f'"{name}"' in text for name in ("sorting", "piped", "adamax", "lines"))
