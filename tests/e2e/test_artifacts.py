"""Proves that one command leaves all that the run folder promises, and that what it says of the model is true."""

import csv
import json
import math
import re

import pytest

from finetune.units import format_figure
from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import run_finetune

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def run(undisturbed):
    return undisturbed[0]


def test_every_artifact_is_there(run):
    files = {str(path.relative_to(run)) for path in run.rglob("*") if "wandb" not in path.parts}
    expected = {
        "recipe.yaml", "plan.json", "run.json", "metrics.jsonl", "report.html",
        "checkpoints/latest", "checkpoints/best", f"checkpoints/step-{tiny.STEPS:08d}/manifest.json",
        "model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/README.md",
        f"predictions/validation-step-{tiny.STEPS:08d}.jsonl", "logs/rank-0.log", "logs/rank-1.log",
    }  # fmt: skip
    assert expected <= files, expected - files
    assert not [name for name in files if "incomplete" in name or ".tmp" in name or "failure" in name]
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert (run / "checkpoints" / "latest").read_text() == f"step-{tiny.STEPS:08d}"


def test_checkpoints_kept_are_the_newest_two_and_the_best(run):
    kept = {path.name for path in (run / "checkpoints").glob("step-*")}
    newest = {f"step-{step:08d}" for step in (tiny.STEPS - 5, tiny.STEPS)}
    assert kept == newest | {(run / "checkpoints" / "best").read_text()}


def test_files_may_be_read_by_whoever_may_read_new_ones(run, tmp_path):
    (tmp_path / "new").touch()
    files = [
        path for part in ("model", "checkpoints", "artifacts", "predictions") for path in (run / part).rglob("*.*")
    ]
    found = {path.stat().st_mode & 0o777 for path in files if path.is_file()}
    assert found == {(tmp_path / "new").stat().st_mode & 0o777} and len(files) > 10


def test_every_step_has_its_row(run):
    rows = tiny.rows(run)
    assert [row["step"] for row in rows] == list(range(1, tiny.STEPS + 1))
    for row in rows:
        assert {"loss", "learning_rate", "grad_norm", "units_per_second", "padding_share", "time"} <= row.keys()
        assert all(math.isfinite(value) for key, value in row.items() if key != "split")
    parts = ("compute_seconds", "communication_seconds", "slowest_seconds", "data_seconds")
    assert all(set(parts) <= row.keys() for row in rows[3:])  # from the fourth step on, which is traced
    assert all(sum(row[part] for part in parts) <= 1.01 * row["step_seconds"] for row in rows[3:])
    assert all(row["compute_seconds"] > 0 for row in rows[3:])
    assert rows[-1]["epoch"] == tiny.EPOCHS
    assert [row["step"] for row in tiny.rows(run, "validation")] == [20, 40, 60]
    assert len(tiny.rows(run, "test")) == 1
    first, last = ([row["loss"] for row in part] for part in (rows[:6], rows[-6:]))
    assert sum(last) < 0.8 * sum(first)


def test_the_model_loads_and_predicts_what_evaluation_predicted(run):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    best = int((run / "checkpoints" / "best").read_text().removeprefix("step-"))
    said = tiny.predictions(run, "validation", best)
    assert sorted(said) == list(range(tiny.VALIDATION_ROWS))
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    with (run.parent / "validation.csv").open() as file:
        examples = list(csv.DictReader(file))
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in examples], padding=True, return_tensors="pt")).logits
    labels = torch.tensor([model.config.label2id[row["label"]] for row in examples])
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    for index in range(tiny.VALIDATION_ROWS):
        assert said[index]["prediction"] == int(logits[index].argmax())
        assert said[index]["loss"] == pytest.approx(float(loss[index]), rel=1e-4)
    row = next(row for row in tiny.rows(run, "validation") if row["step"] == best)
    assert row["loss"] == pytest.approx(float(loss.mean()), rel=1e-5)
    assert row["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_card_and_summary_state_the_figures_of_the_weights_that_were_exported(run):
    best = int((run / "checkpoints" / "best").read_text().removeprefix("step-"))
    row = next(row for row in tiny.rows(run, "validation") if row["step"] == best)
    summary = json.loads((run / "run.json").read_text())["summary"]
    assert (summary["best_step"], summary["best_loss"], summary["best_accuracy"]) == (
        best,
        row["loss"],
        row["accuracy"],
    )
    assert summary["best_value"] == summary["best_loss"]
    (test,) = tiny.rows(run, "test")
    card = (run / "model" / "README.md").read_text()
    assert f"The weights are those of step {best} of {tiny.STEPS} " in card
    assert f"| loss | {format_figure(row['loss'])} | {format_figure(test['loss'])} |" in card
    assert "- length: 10 epochs (60 steps)" in card


def test_all_files_of_the_model_have_the_same_permissions(run):
    modes = {path.name: path.stat().st_mode for path in (run / "model").iterdir()}
    assert len(set(modes.values())) == 1 and "model.safetensors" in modes, modes


def test_the_end_of_a_run_says_what_its_checkpoints_take(undisturbed):
    assert re.search(r"[23] checkpoints \(.*\) in .*/checkpoints: not needed by model/", undisturbed[1].output)


@pytest.mark.parametrize("name", ["best", "latest"])
def test_an_export_states_the_figures_of_its_checkpoint(run, finetune, name):
    step = int((run / "checkpoints" / name).read_text().removeprefix("step-"))
    output = f"exported-{name}"
    words = ["export", run.name, "--output", output, "--checkpoint", name]
    done = finetune(*words) if name == "best" else run_finetune(words, MINUTES, folder=run.parent)
    assert done.code == 0, done.output
    row = next(row for row in tiny.rows(run, "validation") if row["step"] == step)
    card = (run.parent / output / "README.md").read_text()
    assert f"The weights are those of step {step} of" in card and f"| loss | {format_figure(row['loss'])} |" in card
    if name == "best":
        assert card == (run / "model" / "README.md").read_text()


def test_checkpoints_are_removed_where_the_recipe_says_so(workers):
    run = workers.train(2, "tidy", "checkpoint.keep_after_training=best", "training.epochs=2")
    assert [path.name for path in (run / "checkpoints").iterdir()].count("best") == 1
    best = (run / "checkpoints" / "best").read_text()
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == [best]
    assert json.loads((run / "run.json").read_text())["removed_checkpoints"] or best == "step-00000012"


def test_the_resolved_recipe_is_explicit_and_loads_again(run, finetune):
    again = finetune("recipes", "show", str(run / "recipe.yaml"), "--resolved")
    assert again.code == 0, again.output
    assert "learning_rate: 0.005" in again.output and "weight_decay: 0.0" in again.output


def test_wandb_recorded_every_row(run):
    recorded = next(run.glob("wandb/offline-run-*/run-*.wandb"))
    history = tiny.wandb_history(recorded)
    by_step = {row["step"]: row for row in history if "train/loss" in row}
    assert sorted(by_step) == list(range(1, tiny.STEPS + 1))
    for step, loss in tiny.losses(run).items():
        assert by_step[step]["train/loss"] == pytest.approx(loss)
    validated = {row["step"]: row["validation/loss"] for row in history if "validation/loss" in row}
    assert validated == pytest.approx({row["step"]: row["loss"] for row in tiny.rows(run, "validation")})


def test_the_same_command_again_has_nothing_to_do(run, finetune):
    again = finetune("train", "tiny.yaml", "--run-dir", run.name)
    assert again.code == 0 and "nothing to do" in again.output
    assert "accelerate launch" not in again.output
