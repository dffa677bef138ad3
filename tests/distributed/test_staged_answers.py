"""Replicas of two ranks that hold one stage each of an image classifier or a detector answer as the whole model does."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.app.asked_model import load_found
from finetune.app.model_sources import find_model
from finetune.distributed.failure import PeerFailed
from finetune.distributed.session import Session
from finetune.errors import TrainingFailed
from finetune.inference.answering import Answered, Chunk
from finetune.models.placement import Placement

SIDE, LABELS, SIZES = 32, ["circle", "cross", "square"], (11, 1, 7)
SETTINGS: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic"},
    "vit": {
        "image_size": SIDE, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": 2,
    },
}  # fmt: skip


def write_classifier(folder: Path, kind: str) -> Path:
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, id2label=dict(enumerate(LABELS)), **SETTINGS[kind])
    model = AutoModelForImageClassification.from_config(config)
    for name, tensor in model.state_dict().items():
        if "running" in name:  # of an untrained BatchNorm they would be 0 and 1
            tensor.add_(torch.rand_like(tensor) / 8)
        elif "classifier" in name:
            tensor.mul_(20)  # so that images differ in their answers
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def random_image(draw: np.random.Generator) -> Image.Image:
    """Noise between two random bounds for each color."""
    low, high = np.sort(draw.integers(0, 256, (2, 3)), axis=0)
    return Image.fromarray(draw.integers(low, high + 1, (SIDE, SIDE, 3)).astype(np.uint8))


def chunks_of(task: Any, artifacts: Any) -> list[Chunk]:
    """Chunks of several sizes, of which one image alone cannot be cut."""
    draw, chunks, first = np.random.default_rng(5), [], 0
    for number, size in enumerate(SIZES):
        images = [random_image(draw) for _ in range(size)]
        encoded = task.encode(artifacts, [{"image": image} for image in images], with_targets=False)
        chunks.append(Chunk((0, number), [{"id": first + index, **one} for index, one in enumerate(encoded)]))
        first += size
    return chunks


def answers(folder: str, stages: int) -> dict[str, Any]:
    """What this rank's replica says of its chunks, by row, and what this rank holds of the model."""
    torch.set_num_threads(1)
    session = Session.open(None, precision="fp32", cpu=True, replica_size=stages)
    placement = Placement(stages=stages) if stages > 1 else None
    asked = load_found(find_model(folder), placement=placement, session=session)
    weights = [weight for weight in asked.module.parameters() if not weight.is_meta]
    named = {name for name, tensor in asked.module.state_dict().items() if not tensor.is_meta}
    outcomes = {}
    for chunk, found in asked.answerer().run(
        chunks_of(asked.task, asked.artifacts)[session.replica :: session.replicas]
    ):
        for example, outcome in zip(chunk.examples, found, strict=True):
            assert isinstance(outcome, Answered), outcome
            outcomes[example["id"]] = dict(outcome.answer.values)
    held = {name.removeprefix("module.") for name in named}
    return {
        "outcomes": outcomes,
        "held": sum(weight.numel() for weight in weights),
        "names": held,
        "notes": asked.notes,
    }


def same(ours: dict[int, Any], whole: dict[int, Any]) -> None:
    for row, values in ours.items():
        assert values["prediction"] == whole[row]["prediction"]
        assert values["scores"] == pytest.approx(whole[row]["scores"], abs=1e-5)


@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_stages_say_what_the_whole_model_says(ranks: Any, tmp_path: Path, kind: str) -> None:
    folder = str(write_classifier(tmp_path / "model", kind))
    (whole,) = ranks.run(1, answers, folder, 1)
    first, last = ranks.run(2, answers, folder, 2)
    assert sorted(first["outcomes"]) == list(range(sum(SIZES)))
    assert first["outcomes"] == last["outcomes"]
    same(first["outcomes"], whole["outcomes"])
    assert len({tuple(values["scores"]) for values in whole["outcomes"].values()}) > 10, "the images differ"
    assert first["held"] + last["held"] == whole["held"] and min(first["held"], last["held"]) > 0
    assert first["names"] | last["names"] == whole["names"] and not first["names"] & last["names"]
    assert first["notes"] == last["notes"] and first["notes"][0].startswith("stage 1 of 2: ")


@pytest.mark.slow
def test_two_replicas_of_two_stages_say_the_same_to_the_bit(ranks: Any, tmp_path: Path) -> None:
    folder = str(write_classifier(tmp_path / "model", "resnet"))
    one, four = ranks.run(2, answers, folder, 2), ranks.run(4, answers, folder, 2)
    assert [len(rank["outcomes"]) for rank in four] == [18, 18, 1, 1]
    assert four[0]["outcomes"] | four[2]["outcomes"] == one[0]["outcomes"]
    assert four[0]["names"] == four[2]["names"] == one[0]["names"]


def overlap(folder: str) -> bool:
    """Whether the first stage computes later micro-batches before the last stage is done with the first one."""
    session = Session.open(None, precision="fp32", cpu=True, replica_size=2)
    asked = load_found(find_model(folder), placement=Placement(stages=2), session=session)
    model: Any = asked.module
    run, ran = model.stages.run, threading.Event()

    def watched(number: int, received: Any, call: Any) -> Any:
        if number == 1 and not ran.is_set():  # the last stage waits at its first micro-batch for the other's last
            while session.store.count("computed", 0) < 8:
                ran.wait(0.005)
            ran.set()
        result = run(number, received, call)
        if number == 0:
            session.store.count("computed")
        return result

    model.stages.run = watched
    (chunk, *_) = chunks_of(asked.task, asked.artifacts)
    ((_, outcomes),) = asked.answerer().run([chunk])
    return all(isinstance(outcome, Answered) for outcome in outcomes)


def test_stages_work_at_the_same_time(ranks: Any, tmp_path: Path) -> None:
    folder = str(write_classifier(tmp_path / "model", "vit"))
    assert ranks.options(timeout=60).run(2, overlap, folder) == [True, True]


def fail_in_last_stage(folder: str) -> str:
    session = Session.open(None, precision="fp32", cpu=True, replica_size=2)
    asked = load_found(find_model(folder), placement=Placement(stages=2), session=session)
    if session.rank == 1:
        model: Any = asked.module

        def broken(number: int, received: Any, call: Any) -> Any:
            raise torch.OutOfMemoryError("of this rank alone")

        model.stages.run = broken
    try:
        list(asked.answerer().run(chunks_of(asked.task, asked.artifacts)))
    except (TrainingFailed, PeerFailed) as error:
        session.close()  # the process of a real rank ends, upon which the others' messages fail
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_what_fails_in_a_stage_ends_the_other_rank_as_well(ranks: Any, tmp_path: Path) -> None:
    folder = str(write_classifier(tmp_path / "model", "vit"))
    first, last = ranks.run(2, fail_in_last_stage, folder)
    assert last.startswith("TrainingFailed: one of the ranks that hold the model together failed: the row does not fit")
    assert first.startswith("PeerFailed: ")  # so this rank does not blame the chunk


def write_detector(folder: Path) -> Path:
    """An untrained D-FINE, of which boxes and classes differ from image to image."""
    from transformers import AutoConfig, AutoModelForObjectDetection
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    from tests.unit.tasks.test_object_detection import FAMILIES

    torch.manual_seed(0)
    config = AutoConfig.for_model("d_fine", id2label=dict(enumerate(LABELS)), **FAMILIES["d_fine"])
    AutoModelForObjectDetection.from_config(config).save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def boxes(folder: str, stages: int) -> dict[str, Any]:
    """{row: (detections, loss)} of images with and without targets, and the names of the weights that this rank holds."""
    torch.set_num_threads(1)
    session = Session.open(None, precision="fp32", cpu=True, replica_size=stages)
    asked = load_found(find_model(folder), placement=Placement(stages=stages) if stages > 1 else None, session=session)
    draw, chunks = np.random.default_rng(6), []
    for number, (size, with_targets) in enumerate([(9, False), (1, False), (3, True)]):
        objects = {"bbox": [[2, 3, 10, 12]], "category": [LABELS[number]]}
        rows = [{"image": random_image(draw), "objects": objects} for _ in range(size)]
        encoded: Any = asked.task.encode(asked.artifacts, rows, with_targets=with_targets)
        chunks.append(Chunk((0, number), [{"id": 10 * number + index, **one} for index, one in enumerate(encoded)]))
    found = {}
    for chunk, outcomes in asked.answerer().run(chunks):
        for example, outcome in zip(chunk.examples, outcomes, strict=True):
            assert isinstance(outcome, Answered), outcome
            loss = outcome.score.loss if outcome.score is not None else None
            found[example["id"]] = outcome.answer.values["detections"], loss
    held = {name.removeprefix("module.") for name, one in asked.module.state_dict().items() if not one.is_meta}
    return {"found": found, "names": held, "notes": asked.notes}


def test_stages_of_a_detector_find_the_boxes_that_the_whole_model_finds(ranks: Any, tmp_path: Path) -> None:
    """Backbone on one rank, encoder and decoder on the other, with several tensors between them; and the loss of targets."""
    folder = str(write_detector(tmp_path / "model"))
    (whole,) = ranks.run(1, boxes, folder, 1)
    first, last = ranks.run(2, boxes, folder, 2)
    assert first["found"] == last["found"] and first["found"].keys() == whole["found"].keys()
    for row, (ours, loss) in first["found"].items():
        theirs, expected = whole["found"][row]
        assert ours["labels"] == theirs["labels"] and len(ours["labels"]) == 36
        assert np.abs(np.array(ours["boxes"]) - theirs["boxes"]).max() < 1e-5 * SIDE
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=1.1e-5)  # rounded to 5 digits
        assert loss == (None if expected is None else pytest.approx(expected, rel=1e-5))
    assert sum(loss is not None for _, loss in first["found"].values()) == 3
    assert first["names"] | last["names"] == whole["names"]
    assert min(len(first["names"] - last["names"]), len(last["names"] - first["names"])) > 10
    assert "model.backbone" in first["notes"][0] and first["notes"][0].startswith("stage 1 of 2: ")
