"""Proves that a whole training outlives every kind of telemetry: all of it fails at once, and the model is made."""

import json
import logging
import os
from unittest import mock

import pytest

from tests.contract.examples import EXAMPLES
from tests.e2e import tiny
from tests.e2e.inside import train_here
from tests.ranks import Ranks

pytestmark = pytest.mark.timeout(600)


def train_blind(*arguments):
    """A training in which each of these raises when it is called."""
    logging.disable(logging.CRITICAL)
    names = [
        "finetune.distributed.tracer.profile",
        "finetune.training.timing.Timing.summarize",
        "finetune.training.step_logger._memory_bytes",
        "finetune.tracking.wandb_mirror.WandbMirror.row",
        "finetune.tracking.console.Console.step",
        "finetune.tasks.object_detection.descriptions.draw_detections",
        "finetune.training.worst_pictures.draw_example",
        "finetune.tracking.report.write_report",
    ]
    patches = [mock.patch(name, side_effect=OSError(f"broken: {name}")) for name in names]
    for patch in patches:
        patch.start()
    try:
        train_here(*arguments)
    finally:
        mock.patch.stopall()


def train_without_samples(*arguments):
    """Samples raise on rank 0 alone."""
    broken = mock.patch("finetune.tasks.object_detection.task.ObjectDetection.sample", side_effect=ValueError("broken"))
    if os.environ["RANK"] == "0":
        broken.start()
    try:
        train_here(*arguments)
    finally:
        mock.patch.stopall()


def train_with_late_fault(*arguments):
    """Samples raise on every rank the first time, which is after the model has answered."""
    from finetune.tasks.text_classification.task import TextClassification

    real = TextClassification.sample

    def sample(*rest, **options):
        real(*rest, **options)
        raise ValueError(f"broken on rank {os.environ['RANK']}")

    with mock.patch.object(TextClassification, "sample", sample):
        train_here(*arguments)


def train_with_one_late_fault(*arguments):
    """The same on rank 1 alone."""
    (train_with_late_fault if os.environ["RANK"] == "1" else train_here)(*arguments)


@pytest.mark.parametrize("train", [train_with_late_fault, train_with_one_late_fault])
def test_samples_that_fail_where_ranks_need_each_other_are_switched_off_on_all(pool: Ranks, tmp_path, train):
    example = next(one for one in EXAMPLES if one.task == "text_classification")
    training = {"precision": "fp32", "steps": 2, "global_batch": 4}
    recipe = example.recipe(tmp_path, training=training, parallel={"deepspeed": "zero3"}, tracking={"wandb": "off"})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    pool.run(2, train, str(tmp_path), "recipe.yaml", str(tmp_path / "run"), [], "auto", {})
    said = (tmp_path / "run" / "logs" / "said-0.txt").read_text()
    assert said.count("showing samples failed and is switched off; training goes on (ValueError: broken on rank") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


def test_a_training_whose_telemetry_all_fails_is_as_good(pool: Ranks, tmp_path):
    example = next(one for one in EXAMPLES if one.task == "object_detection")
    training = {"precision": "fp32", "steps": 8, "global_batch": 4, "learning_rate": 1e-3}
    recipe = example.recipe(tmp_path, training=training, tracking={"log_every": 1, "wandb": "offline"})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    for name, function in (("whole", train_here), ("blind", train_blind), ("unseen", train_without_samples)):
        pool.run(2, function, str(tmp_path), "recipe.yaml", str(tmp_path / name), [], "auto", {})
    whole, blind = tmp_path / "whole", tmp_path / "blind"
    assert (whole / "report.html").is_file() and not (blind / "report.html").exists()
    assert json.loads((blind / "run.json").read_text())["status"] == "done"
    said = (tmp_path / "unseen" / "logs" / "said-0.txt").read_text()
    assert said.count("showing samples failed and is switched off; training goes on (ValueError: broken)") == 1
    assert (tmp_path / "unseen" / "report.html").is_file()
    losses = [[row["loss"] for row in tiny.rows(run) if row["split"] == "train"] for run in (whole, blind)]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, blind)]
    assert weights[0] == weights[1]
    assert list((whole / "predictions" / "pictures").rglob("*.png"))
    assert not list(blind.glob("predictions/pictures/**/*.png"))
