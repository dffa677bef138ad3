"""Proves that what a figure does not say by itself is said beside it: a metric without a value, which was to choose the best
checkpoint, and rows that are in train as well.
"""

import csv
import json
import re

import pytest

from tests.e2e import tiny

WHY = "no class has both positive and negative examples"


@pytest.fixture(scope="module")
def trained(finetune, workplace):
    """A run whose validation rows are all of one class, with one of train, and what was printed."""
    with (workplace / "validation.csv").open(newline="") as file, (workplace / "train.csv").open(newline="") as train:
        rows = [row for row in csv.DictReader(file) if row["label"] == "good"]
        rows += [row for row in csv.DictReader(train) if row["label"] == "good"][:1]
    with (workplace / "good.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    tiny.write_recipe(
        workplace,
        "one-class.yaml",
        data={"train": "train.csv", "validation": "good.csv"},
        training={"global_batch": tiny.GLOBAL_BATCH, "steps": 4, "learning_rate": 5e-3},
        parallel={"processes": 1, "deepspeed": "none"},
        evaluation={"every": 2, "metrics": ["accuracy", "roc_auc"], "best": "roc_auc", "samples": 0},
        checkpoint={"every": 4, "keep": 1},
    )
    finished = finetune("train", "one-class.yaml", "--run-dir", "one-class")
    assert finished.code == 0, finished.output
    return workplace / "one-class", finished.output


def test_the_training_says_so_at_each_evaluation_and_at_its_end(trained):
    run, output = trained
    for step in (2, 4):
        assert re.search(rf"roc_auc is undefined for validation: {WHY}.*step {step} cannot be the best", output), output
    assert "best    none: roc_auc is undefined in every evaluation" in output
    assert not (run / "checkpoints" / "best").exists()
    card = (run / "model" / "README.md").read_text()
    assert "The weights are those of step 4 of 4" in card and "| accuracy | " in card, card
    assert [row["accuracy"] for row in tiny.rows(run, "validation")], "the other metrics are there"


def test_the_report_does_not_say_that_nothing_was_evaluated(trained):
    page = (trained[0] / "report.html").read_text()
    assert "roc_auc chooses the best checkpoint, but is undefined in every evaluation: none was chosen." in page
    assert "Nothing was evaluated" not in page


def test_evaluate_says_it_too(finetune, trained):
    finished = finetune("evaluate", "one-class", "--name", "again")
    assert finished.code == 0, finished.output
    assert f"roc_auc is undefined for validation: {WHY}" in finished.output
    figures = json.loads((trained[0] / "evaluations" / "again" / "figures.json").read_text())
    assert WHY in figures["undefined"]["roc_auc"] and "accuracy" in figures


def test_rows_that_are_in_train_as_well_are_repeated_wherever_the_figures_are(trained):
    run, output = trained
    said = "rows are in train as well, so its figures are not those on new data"
    assert re.search(rf"(?m)^validation: 1 of \d+ {said}$", output), output
    assert said in (run / "model" / "README.md").read_text()
    page = (run / "report.html").read_text()
    assert f"{said}." in page
    assert re.search(r"<small>validation loss</small>.*?1 of \d+ rows are in train as well", page, re.S)
