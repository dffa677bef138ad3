"""Reports of runs that are large or odd: time to write them, bytes, elements, and when Chromium has drawn them.

    python -m benchmarks.large_reports [RUN ...]

Runs are made up: 100,000 logged steps with 100,000 predictions; 3,000 classes; one evaluation; a run that is training, one that
broke off; and a group of all of them. RUN: further runs, or pages, that are only drawn. Goal: under 1 MB and 1 s.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from finetune.app.report import report
from finetune.recipe.recipe import Recipe
from finetune.tracking.journal import Journal
from finetune.tracking.run import Run
from tests.browser import Browser, find_chromium

WIDTH = 1200
FACTS = {"model": "made up", "parameters": 1_000_000, "ranks": 8, "device": "cuda", "unit": "example"}


def begin(folder: Path, total: int) -> tuple[Run, Journal]:
    values = {
        "name": "large",
        "task": "text_classification",
        "model": {"source": "org/m"},
        "data": {"train": "org/set"},
    }
    run = Run.create(Recipe.model_validate(values), folder.parent, path=folder)
    journal = Journal(run)
    journal.started(start_step=0, total_steps=total, steps_per_epoch=max(total // 10, 1), facts=FACTS)
    return run, journal


def add_steps(run: Run, steps: int, evaluations: int) -> None:
    """Written as lines: the journal syncs each row to the disk."""
    random = np.random.default_rng(0)
    with run.metrics_file.open("a", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            loss = 2 / (1 + step / 1000) + random.random() / 10
            row: dict[str, Any] = {"step": step, "epoch": 10 * step / steps, "split": "train", "loss": loss}
            row |= {
                "learning_rate": 1e-4,
                "grad_norm": loss / 2,
                "units_per_second": 1500.0,
                "step_seconds": 0.1,
                "time": 0.0,
            }
            file.write(json.dumps(row) + "\n")
            if evaluations and step % (steps // evaluations) == 0:
                figures = {"loss": loss, "accuracy": 1 - loss / 3, "f1_macro": 1 - loss / 2}
                file.write(
                    json.dumps({"step": step, "epoch": 10 * step / steps, "split": "validation", **figures}) + "\n"
                )


def add_predictions(run: Run, step: int, count: int, classes: int, *, scores: bool) -> None:
    random = np.random.default_rng(1)
    reference = random.integers(0, classes, count)
    prediction = np.where(random.random(count) < 0.8, reference, random.integers(0, classes, count))
    with (run.predictions / f"validation-step-{step:08d}.jsonl").open("w", encoding="utf-8") as file:
        for index in range(count):
            row: dict[str, Any] = {
                "id": index,
                "prediction": int(prediction[index]),
                "reference": int(reference[index]),
            }
            if scores:
                share = [0.2 / max(classes - 1, 1)] * classes
                share[row["prediction"]] = 0.8
                row["scores"] = share
            row |= {"loss": 0.1, "weight": 1, "text": "a text " * 20}
            file.write(json.dumps(row) + "\n")


def add_tables(journal: Journal, step: int, classes: int) -> None:
    names = [f"class number {index}" for index in range(classes)]
    rows = [[name, 0.5 + index / classes / 2, 0.7, 0.6, 10] for index, name in enumerate(names)]
    journal.table("per_class", step=step, columns=["label", "precision", "recall", "f1", "support"], rows=rows)
    pairs = [[names[index], names[-1 - index], 9] for index in range(min(500, classes // 2))]
    journal.table("confusion_matrix", step=step, columns=["reference", "predicted", "count"], rows=pairs)
    columns = ["id", "loss", "predicted", "label", "text"]
    journal.table(
        "worst_examples", step=step, columns=columns, rows=[[1, 9.0, names[0], names[1], "word " * 2000]] * 20
    )


def many_rows(folder: Path) -> None:
    run, journal = begin(folder, 100_000)
    add_steps(run, 100_000, 100)
    add_predictions(run, 100_000, 100_000, 2, scores=True)
    add_tables(journal, 100_000, 2)
    journal.finished(status="done", summary={"best_step": 100_000, "best_metric": "accuracy", "steps": 100_000})


def many_classes(folder: Path) -> None:
    run, journal = begin(folder, 1000)
    add_steps(run, 1000, 10)
    add_predictions(run, 1000, 3000, 3000, scores=True)
    add_tables(journal, 1000, 3000)
    counts = {f"class number {index}": 5 for index in range(200)}
    run.update(facts={**run.read()["facts"], "class_balance": {"train": counts, "validation": counts}})
    journal.finished(status="done", summary={"best_step": 1000, "best_metric": "accuracy", "steps": 1000})


def one_evaluation(folder: Path) -> None:
    run, journal = begin(folder, 10)
    add_steps(run, 10, 1)
    journal.finished(
        status="done", summary={"best_step": 10, "best_metric": "accuracy", "best_value": 0.5, "steps": 10}
    )


def training_now(folder: Path) -> None:
    run, _ = begin(folder, 100_000)
    add_steps(run, 5000, 5)


def broken(folder: Path) -> None:
    run, _ = begin(folder, 1000)
    add_steps(run, 500, 5)
    run.recipe_file.write_text("a: [", encoding="utf-8")
    (run.tables / "per_class-step-00000500.json").write_text("{", encoding="utf-8")
    with run.metrics_file.open("a", encoding="utf-8") as file:
        file.write('{"step": 501, "lo')


CASES: dict[str, Callable[[Path], None]] = {
    "100,000 rows and predictions": many_rows,
    "3,000 classes": many_classes,
    "one evaluation": one_evaluation,
    "training": training_now,
    "broken off": broken,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, metavar="RUN")
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        sys.exit("no Chromium found")
    print("| report | CPU seconds to write it | bytes | elements | drawn in |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        group = Path(root) / "group"
        for number, (name, make) in enumerate(CASES.items()):
            folder = group / f"run-{number}"
            make(folder)
            show(program, name, folder)
        show(program, "the group of these", group)
    for page in options.pages:
        draw(program, f"{page.resolve().name}", page / "report.html" if page.is_dir() else page, "")


def show(program: str, name: str, target: Path) -> None:
    began = time.process_time()
    page = report(target)
    draw(program, name, page, f"{time.process_time() - began:.1f} s")


def draw(program: str, name: str, page: Path, written: str) -> None:
    """By a browser that has just been started, as for a person who opens the page first."""
    with Browser(program) as browser:
        found = browser.draw(page, WIDTH)
    seconds = max(found["largest"], found["loaded"]) / 1000
    faults = f" ({'; '.join(found['faults'])})" if found["faults"] else ""
    print(
        f"| {name} | {written} | {page.stat().st_size:,} | {found['nodes']:,} | {seconds:.2f} s{faults} |", flush=True
    )


if __name__ == "__main__":
    main()
