"""Proves what a run folder alone is good for: moved to another place, after its data is gone, it is evaluated, exported and
reported, without an optimizer and without touching what the training wrote; and training resumes from a named checkpoint.
"""

import csv
import hashlib
import json
import os
import shutil
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from finetune.app.export import export
from finetune.distributed.failure import read_failures
from finetune.errors import UserError
from tests.e2e import tiny
from tests.e2e.conftest import Workers
from tests.e2e.inside import ids_by_step
from tests.faults import run_finetune
from tests.ranks import RankError

SHORT = ("training.epochs=2", "evaluation.every=6", "checkpoint.every=6")  # 12 steps, checkpoints of steps 6 and 12
LORA = ("adapter={rank: 4, targets: [query, value]}", "training.learning_rate=5e-2")
RUNS = {"whole": (), "adapter": LORA, "tuned": LORA}
STEPS = 12
pytestmark = pytest.mark.timeout(600)


def evaluate_here(run, **options):
    """On a rank, as a launcher would start it. What the engine holds beside the weights."""
    from finetune.app.dispatch import run_verb
    from finetune.app.workers import context, evaluate

    engines, built = [], evaluate.build_engine

    def build_engine(*arguments, **keywords):
        engines.append(built(*arguments, **keywords))
        return engines[-1]

    given = {"checkpoint": "best", "split": "", "data": [], "read": [], "name": "", "sets": [], "processes": None}
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        stack.enter_context(mock.patch.object(evaluate, "build_engine", build_engine))
        stack.enter_context(mock.patch.object(context, "make_optimizer", side_effect=AssertionError("an optimizer")))
        run_verb("evaluate", run=Path(run), **given | options)
    (engine,) = engines
    optimizers = [engine.optimizer, engine.inner_optimizer, getattr(engine.model, "optimizer", None)]
    return {
        "kind": type(engine.model).__name__,
        "optimizers": [type(one).__name__ for one in optimizers if one is not None],
        "gradients": sum(weight.grad is not None for weight in engine.module.parameters()),
    }


def read_evaluation(folder):
    """figures.json, and the predictions by example id."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return json.loads((folder / "figures.json").read_text()), {row["id"]: row for row in rows}


def row_of(run, step, split="validation"):
    return next(row for row in tiny.rows(run, split) if row["step"] == step)


def digests(run):
    """Every file of the training: not those of evaluations, and not the logs."""
    files = [path for path in run.rglob("*") if path.is_file()]
    own = [path for path in files if path.relative_to(run).parts[0] not in ("evaluations", "logs")]
    return {path.relative_to(run): hashlib.sha256(path.read_bytes()).hexdigest() for path in own}


@pytest.fixture(scope="module")
def run(workers):
    return workers.train(2, "evaluated", *SHORT)


@pytest.fixture(scope="module")
def moved(pool, tmp_path_factory):
    """Runs in a new place: of all weights, of an adapter on random weights, and of one on weights in a folder, which is
    still there. Of the data, only the validation rows still exist.
    """
    before, after = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    tiny.write_data(before)
    tiny.write_weights(after / "weights")
    for name, sets in RUNS.items():
        model = {"source": str(after / "weights")} if name == "tuned" else tiny.recipe()["model"]
        tiny.write_recipe(before, f"{name}.yaml", model=model)
        Workers(pool, before).train(2, name, *SHORT, *sets, recipe=f"{name}.yaml")
        shutil.move(before / name, after / name)
    shutil.move(before / "validation.csv", after / "validation.csv")
    shutil.rmtree(before)
    return after


@pytest.mark.parametrize("name", RUNS)
def test_other_data_is_evaluated_after_the_training_data_is_gone(name, moved, pool):
    run, data = moved / name, str(moved / "validation.csv")
    before = digests(run)
    pool.run(2, evaluate_here, str(run), data=[data], checkpoint=f"step-{STEPS:08d}")
    figures, said = read_evaluation(run / "evaluations" / f"step-{STEPS:08d}-validation")
    row, predictions = row_of(run, STEPS), tiny.predictions(run, "validation", STEPS)
    assert (figures["loss"], figures["accuracy"]) == (row["loss"], row["accuracy"])
    assert said == predictions
    assert figures["data"]["sources"] == [data] and figures["data"]["rows"] == figures["examples"] == len(said)
    assert digests(run) == before


def test_the_commands_work_on_the_moved_folder(moved, finetune):
    run = moved / "whole"
    (run / "report.html").unlink()
    finished = finetune("evaluate", str(run), "--data", "validation.csv", "--name", "mine", folder=moved)
    assert finished.code == 0, finished.output
    told = json.loads(finished.output[finished.output.index("{") : finished.output.rindex("}") + 1])
    assert told == json.loads((run / "evaluations" / "mine" / "figures.json").read_text())
    best = (run / "checkpoints" / "best").read_text()
    assert told["checkpoint"] == best and told["loss"] == row_of(run, int(best.removeprefix("step-")))["loss"]
    finished = run_finetune(["report", str(run)], folder=moved)
    assert finished.code == 0 and "validation" in (run / "report.html").read_text(), finished.output


def test_a_split_that_is_gone_is_named(moved, finetune):
    finished = finetune("evaluate", str(moved / "whole"), "--split", "test")
    assert finished.code == 2 and "test.csv" in finished.output, finished.output
    assert "Traceback" not in finished.output and "accelerate launch" not in finished.output


def read_rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "checkpoint", "merge"),
    [
        ("whole", "best", False),
        ("whole", "latest", False),
        ("adapter", "best", False),
        ("adapter", "best", True),
        ("tuned", "best", True),
        ("tuned", "step-00000006", True),
    ],
)
def test_the_exported_model_predicts_as_the_training_did(name, checkpoint, merge, moved, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run, output = moved / name, tmp_path / "exported"
    export(run, output=output, checkpoint=checkpoint, merge=merge)
    label = run / "checkpoints" / checkpoint
    step = int((label.read_text() if label.is_file() else checkpoint).removeprefix("step-"))
    if name == "adapter" and not merge:  # the base is random weights of the recipe: nobody else has them
        ours, theirs = (load_file(at / "adapter_model.safetensors") for at in (output, run / "model"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        return
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    said, rows = tiny.predictions(run, "validation", step), read_rows(moved / "validation.csv")
    with torch.no_grad():
        logits = model.eval()(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
    labels = torch.tensor([model.config.label2id[row["label"]] for row in rows])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
    assert losses == pytest.approx([said[index]["loss"] for index in range(len(rows))], rel=1e-4)
    assert logits.argmax(1).tolist() == [said[index]["prediction"] for index in range(len(rows))]
    assert json.loads((output / "artifacts.json").read_text())["task"] == "text_classification"


def test_other_metrics_can_be_asked_for(run, pool):
    pool.run(1, evaluate_here, str(run), sets=["evaluation.metrics=[f1_macro]"], name="other-metrics")
    figures, _ = read_evaluation(run / "evaluations" / "other-metrics")
    assert 0 <= figures["f1_macro"] <= 1 and "accuracy" not in figures
    assert "accuracy" in row_of(run, STEPS)


@pytest.mark.parametrize(("count", "stage"), [(2, "zero2"), (2, "zero3"), (1, "zero2"), (1, "none")])
def test_the_figures_are_those_of_the_training_and_there_is_no_optimizer(count, stage, run, pool):
    before, name = digests(run), f"{count}-{stage}"
    held = pool.run(count, evaluate_here, str(run), name=name, sets=[f"parallel.deepspeed={stage}"])
    for rank in held:
        gathering = ["DeepSpeedZeRoOffload"] if stage == "zero3" else []  # gathers weights, and is no optimizer
        assert rank["optimizers"] == gathering and not rank["gradients"], rank
        assert (rank["kind"] == "DeepSpeedEngine") == (stage != "none")
    figures, said = read_evaluation(run / "evaluations" / name)
    step = int(figures["checkpoint"].removeprefix("step-"))
    assert figures["checkpoint"] == (run / "checkpoints" / "best").read_text()
    row, predictions = row_of(run, step), tiny.predictions(run, "validation", step)
    assert figures["loss"] == pytest.approx(row["loss"], rel=1e-6) and figures["accuracy"] == row["accuracy"]
    assert figures["data"]["split"] == figures["split"] == "validation"
    assert {i: one["prediction"] for i, one in said.items()} == {i: one["prediction"] for i, one in predictions.items()}
    assert digests(run) == before


def test_the_test_split_of_the_best_checkpoint(run, pool):
    pool.run(2, evaluate_here, str(run), split="test")
    figures, said = read_evaluation(run / "evaluations" / "best-test")
    (row,) = tiny.rows(run, "test")
    assert (figures["loss"], figures["accuracy"], figures["examples"]) == (row["loss"], row["accuracy"], len(said))
    tables = json.loads((run / "evaluations" / "best-test" / "tables.json").read_text())
    assert len(tables["worst_examples"]["rows"]) == len(said) == 5


def test_a_second_evaluation_of_the_same_name_has_a_folder_of_its_own(run, pool):
    pool.run(1, evaluate_here, str(run), name="again", checkpoint="latest")
    first = (run / "evaluations" / "again" / "figures.json").read_text()
    pool.run(1, evaluate_here, str(run), name="again", checkpoint="step-00000006")
    assert (run / "evaluations" / "again" / "figures.json").read_text() == first
    second, _ = read_evaluation(run / "evaluations" / "again-2")
    assert second["checkpoint"] == "step-00000006" and Path(second["folder"]).name == "again-2"


@pytest.fixture
def bad_data(tmp_path):
    """Name -> a file that cannot be evaluated."""
    contents = {
        "empty": "", "head": "text,label\n", "unlabeled": "text\nfine film\nawful plot\n",
        "unknown": "text,label\nfine film,neutral\n",
    }  # fmt: skip
    for name, text in contents.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [("empty", "empty"), ("head", "empty"), ("unlabeled", "label"), ("unknown", "neutral")],
)
def test_data_that_cannot_be_evaluated_is_named(name, said, bad_data, run, finetune):
    finished = finetune("evaluate", str(run), "--data", f"{name}.csv", "--name", "bad", folder=bad_data)
    assert finished.code == 2 and f"{name}.csv" in finished.output and said in finished.output, finished.output
    assert "Traceback" not in finished.output
    assert not (run / "evaluations" / "bad").exists(), "nothing is left of an evaluation that failed"


def test_a_worker_of_another_launcher_names_data_without_labels(bad_data, run, pool):
    with pytest.raises(RankError):
        pool.run(2, evaluate_here, str(run), data=[str(bad_data / "unlabeled.csv")], name="bad")
    first, *others = read_failures(run / "logs" / "evaluate-bad")
    assert isinstance(first.to_error(), UserError) and "label" in first.what, first
    assert all(other.echo for other in others)
    assert not (run / "evaluations" / "bad").exists()


def test_a_checkpoint_or_split_that_is_not_there_is_named(run, finetune):
    finished = finetune("evaluate", str(run), "--checkpoint", "step-00000007")
    assert finished.code == 2, finished.output
    assert "step-00000006" in finished.output and "Traceback" not in finished.output
    assert "accelerate launch" not in finished.output
    finished = finetune("evaluate", str(run), "--split", "tset")
    assert finished.code == 2 and "no split tset" in finished.output, finished.output
    finished = finetune("evaluate", str(run), "--split", "test", "--data", "other.csv")
    assert finished.code == 2 and "--split test and --data other.csv both say" in finished.output, finished.output
    finished = finetune("evaluate", str(run), "--name", "..")
    assert finished.code == 2 and "preparing" not in finished.output, finished.output
    assert not [one.name for one in (run / "evaluations").glob("*") if "tset" in one.name or "07" in one.name]


def test_training_resumes_from_a_named_checkpoint_in_a_new_run(workers, run):
    checkpoint = run / "checkpoints" / "step-00000006"
    resumed = workers.train(2, "from-six", *SHORT, resume=str(checkpoint))
    expected, found = tiny.losses(run), tiny.losses(resumed)
    assert found == {step: expected[step] for step in range(7, STEPS + 1)}
    assert ids_by_step(resumed) == {step: ids for step, ids in ids_by_step(run).items() if step > 6}
    models = [(one / "model" / "model.safetensors").read_bytes() for one in (run, resumed)]
    assert models[0] == models[1] or (run / "checkpoints" / "best").read_text() == checkpoint.name


@pytest.mark.parametrize("place", ["run", "alone"])
def test_a_checkpoint_of_another_recipe_is_refused_with_what_differs(place, workers, run, tmp_path):
    """Also outside its run folder: the checkpoint itself names its recipe."""
    checkpoint = run / "checkpoints" / "step-00000006"
    if place == "alone":
        checkpoint = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    changes = ("training.learning_rate=1e-3", "model.config.hidden_size=16", "parallel.deepspeed=zero1")
    with pytest.raises(RankError) as ended:  # before the ranks meet
        workers.train(2, f"other-{place}", *SHORT, *changes, resume=str(checkpoint))
    said = str(ended.value)
    named = {
        "run": "the checkpoint belongs to another recipe",
        "alone": "the checkpoint was trained with another recipe",
    }
    assert named[place] in said, said
    assert "training.learning_rate: 0.005 in the run, 0.001 now" in said
    assert "model.config.hidden_size: 32 in the run, 16 now" in said
    assert "parallel.deepspeed:" not in said, "the layout is not part of what is learned"
    assert not (workers.folder / f"other-{place}" / "run.json").exists()
