"""Proves that boxes follow their image, that bad ones are told with image and annotation, that the loss of every family of
detectors is the same sum however a batch is split, and that a new head leaves the boxes as they were trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.errors import UserError
from finetune.models.detection import (
    MAX_DETECTIONS,
    box_units,
    cast_inputs,
    decode_boxes,
    defer_loss,
    detection_loss_sum,
    detection_losses,
)
from finetune.tasks.object_detection.card import CARD
from finetune.tasks.vision.boxes import Objects, center_boxes, crop, mirror, random_window
from finetune.tasks.vision.detection_transforms import DetectionTransform
from tests.contract.examples import DFINE as TINY
from tests.prepared import Prepared, prepare

torch.set_num_threads(1)
DFINE = {**TINY, "num_queries": 12, "num_denoising": 8, "weight_loss_ddf": 1.5}


def coco(folder: Path, annotations: list[dict[str, Any]], *, images: int = 3) -> Path:
    """A COCO folder of grey images of 60 x 40 pixels."""
    for index in range(images):
        Image.new("RGB", (60, 40), (40 * index, 90, 90)).save(folder / f"{index}.png")
    content = {
        "images": [{"id": 10 + index, "file_name": f"{index}.png"} for index in range(images)],
        "annotations": [{"id": 100 + index, **one} for index, one in enumerate(annotations)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "never seen"}],
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def box(image: int, category: int, *bbox: float, **more: Any) -> dict[str, Any]:
    return {"image_id": 10 + image, "category_id": category, "bbox": list(bbox), **more}


def read(folder: Path, **changes: Any) -> Prepared:
    model = {"source": "d_fine", "init": "config", "config": DFINE}
    data = {"train": [{"source": str(folder)}], "on_bad_row": changes.pop("on_bad_row", "error")}
    values = {"name": "t", "task": CARD.name, "model": model, "data": data, "options": {"image_size": 64}, **changes}
    return prepare(values)


GOOD = [box(0, 1, 5, 5, 20, 20), box(0, 2, 30, 10, 20.5, 30.9), box(2, 1, 0, 0, 60, 40)]


def test_a_coco_folder_becomes_images_with_boxes(tmp_path: Path) -> None:
    prepared = read(coco(tmp_path, [*GOOD, box(2, 1, 1, 1, 9, 9, iscrowd=1)]))
    examples = prepared.datasets["train"]
    assert prepared.artifacts.labels == ["cat", "dog"] and len(examples) == 3
    first, empty, crowded = (examples[index] for index in range(3))
    assert first["pixel_values"].shape == (3, 64, 64)
    assert first["class_labels"].tolist() == [0, 1]
    assert first["boxes"][0].tolist() == pytest.approx([15 / 60, 15 / 40, 20 / 60, 20 / 40])
    assert first["objects"]["boxes"][1] == [30.0, 10.0, 20.5, 30.0]  # cut at the edge: less than 1.5 pixels beyond it
    assert empty["boxes"].shape == (0, 4) and empty["place"].endswith("1.png")
    assert len(crowded["boxes"]) == 1 and crowded["objects"]["crowd"] == [0, 1]
    assert "3 images (1 without boxes), 4 boxes" in prepared.facts.values["train"]


def test_a_yolo_data_set_gives_the_examples_of_the_same_boxes_in_coco(tmp_path: Path) -> None:
    """options.box_format does not change what the format of the file says."""
    boxes = [box(0, 1, 6, 4, 30, 20), box(0, 2, 30, 10, 15, 20), box(2, 2, 0, 0, 60, 40)]
    expected = read(coco(tmp_path, boxes)).datasets["train"]
    (tmp_path / "0.txt").write_text("5 0.35 0.35 0.5 0.5\n7 0.625 0.5 0.25 0.5\n")
    (tmp_path / "2.txt").write_text("7 0 0 1 0 1 1 0 1\n")
    (tmp_path / "data.yaml").write_text("train: .\nnames: {5: cat, 7: dog}\n")
    for options in ({}, {"box_format": "xyxy"}):
        prepared = read(tmp_path / "data.yaml", options={"image_size": 64, **options})
        examples = prepared.datasets["train"]
        assert prepared.artifacts.labels == ["cat", "dog"] and len(examples) == len(expected) == 3
        for one, other in zip(examples, expected, strict=True):
            assert one["class_labels"].tolist() == other["class_labels"].tolist()
            assert np.allclose(one["boxes"], other["boxes"], atol=1e-6)
            assert one["objects"] == other["objects"] and one["place"] == other["place"]
        (note,) = [note for note in prepared.facts.notes if "polygons" in note]
        assert note.startswith("train: 1 row: labels are polygons: the box around each is learned")


BAD = {
    "no area": (box(1, 1, 5, 5, 0, 10), "annotation 103: box [5, 5, 0, 10] has no area"),
    "outside": (box(1, 1, 70, 5, 10, 10), "lies outside the image of 60 x 40 pixels"),
    "partly": (box(1, 1, 50, 5, 20, 10), "lies partly outside the image of 60 x 40"),
    "no number": (box(1, 1, 5, float("nan"), 4, 10), "holds a value that is not a number"),
    "three": (box(1, 1, 5, 4, 10), "is not [x, y, width, height]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_box_is_reported_with_image_and_annotation(tmp_path: Path, kind: str) -> None:
    bad, why = BAD[kind]
    folder = coco(tmp_path, [*GOOD, bad])
    with pytest.raises(UserError) as told:
        read(folder)
    assert "1.png: annotation 103" in str(told.value) and why in str(told.value)
    prepared = read(folder, on_bad_row="skip")
    assert len(prepared.datasets["train"]) == 3  # the box is left out, not the image
    left_out = prepared.facts.values["train boxes left out"]
    assert left_out.startswith("1\n") and "annotation 103" in left_out


def test_what_is_wrong_with_the_file_is_reported(tmp_path: Path) -> None:
    coco(tmp_path, [*GOOD, box(1, 9, 1, 1, 2, 2)])
    with pytest.raises(UserError, match=r"1\.png: annotation 103: there is no category 9"):
        read(tmp_path)
    coco(tmp_path, [*GOOD, box(5, 1, 1, 1, 2, 2)])
    with pytest.raises(UserError, match="annotation 103: there is no image 15"):
        read(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no image")
    coco_file = tmp_path / "_annotations.coco.json"
    coco(tmp_path, GOOD, images=2)
    with pytest.raises(UserError, match="there is no image 12"):
        read(tmp_path)
    coco_file.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="has no list 'images'"):
        read(tmp_path)


def test_a_broken_and_a_cmyk_image(tmp_path: Path) -> None:
    coco(tmp_path, GOOD)
    Image.new("CMYK", (60, 40), (0, 200, 200, 0)).save(tmp_path / "1.png", "TIFF")
    pixels = np.asarray(read(tmp_path).datasets["train"][1]["pixel_values"])
    assert pixels[0].mean() > 2 * pixels[1].mean()  # red, not the four inks taken for colours
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "_annotations.coco.json").touch()
    with pytest.raises(UserError, match=r"2\.png: broken image|2\.png: .*cannot be opened|2\.png: not an image"):
        read(tmp_path)


def test_boxes_follow_the_image() -> None:
    corners = np.array([[10.0, 5.0, 30.0, 25.0]])
    assert mirror(corners, 60).tolist() == [[30.0, 5.0, 50.0, 25.0]]
    inside, kept = crop(corners, (20, 0, 60, 40))
    assert inside.tolist() == [[0.0, 5.0, 10.0, 25.0]] and kept.tolist() == [True]
    assert crop(corners, (29, 0, 60, 40))[1].tolist() == [False]  # a twentieth of it is left
    assert center_boxes(inside, 40, 40)[0].tolist() == pytest.approx([0.125, 0.375, 0.25, 0.5])
    for seed in range(50):
        left, top, right, bottom = random_window(corners, 60, 40, np.random.default_rng(seed))
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 40
        assert crop(corners, (left, top, right, bottom))[1].any()


def test_chance_changes_move_pixels_and_boxes_together() -> None:
    """A white box on black: wherever it goes, the pixels inside its new box are white, those far outside black."""
    from transformers import RTDetrImageProcessorPil

    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[10:40, 15:55] = 255
    objects = Objects([[15.0, 10.0, 55.0, 40.0]], [3], [0])
    transform = DetectionTransform(
        RTDetrImageProcessorPil(size={"height": 64, "width": 64}), (64, 64), "crop_flip", seed=1
    )
    seen = set()
    for example_id in range(40):
        made = transform(Image.fromarray(pixels), objects, example_id)
        assert made["class_labels"].tolist() == [3]
        x, y, wide, high = made["boxes"][0] * 64
        mask = np.zeros((64, 64), bool)
        mask[round(y - high / 2) : round(y + high / 2), round(x - wide / 2) : round(x + wide / 2)] = True
        light = np.asarray(made["pixel_values"]).mean(axis=0) > 0.3
        assert (light == mask).mean() > 0.93
        seen.add(tuple(made["boxes"][0].tolist()))
        again = transform(Image.fromarray(pixels), objects, example_id)
        assert np.array_equal(again["pixel_values"], made["pixel_values"])
    assert len(seen) > 30
    transform.epoch = 1
    assert not np.array_equal(transform(Image.fromarray(pixels), objects, 0)["boxes"], made["boxes"])


RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
SMALL = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "d_fine": DFINE,
    "rt_detr_v2": {
        "backbone_config": {
            "model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
            "layer_type": "basic", "out_indices": [2, 3, 4],
        },
        "encoder_in_channels": [8, 16, 16], "encoder_hidden_dim": 32, "d_model": 32, "decoder_in_channels": [32, 32, 32],
        "num_queries": 10, "decoder_layers": 2, **SMALL,
    },
    "deformable_detr": {
        "backbone_config": {**RESNET, "out_indices": [2, 3, 4]}, "d_model": 32, "num_queries": 10, "num_feature_levels": 3,
        "encoder_layers": 1, "decoder_layers": 2, "auxiliary_loss": True, **SMALL,
    },
    "yolos": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": [64, 64],
        "num_detection_tokens": 8, "use_mid_position_embeddings": False,
    },
}  # fmt: skip


def detector(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForObjectDetection

    config = AutoConfig.for_model(family, num_labels=2, **FAMILIES[family])
    torch.manual_seed(0)
    return AutoModelForObjectDetection.from_config(config)


def targets(counts: list[int]) -> list[dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(7)
    return [
        {
            "class_labels": torch.randint(0, 2, (count,), generator=rng),
            "boxes": 0.2 + 0.3 * torch.rand((count, 4), generator=rng),
        }
        for count in counts
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_a_sum_over_boxes(family: str) -> None:
    """Whole batch, halves, image by image: one number; and it is what transformers says of one image."""
    labels, pixels = targets([2, 0, 1, 3]), torch.rand((4, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    model = detector(family).eval()
    with torch.no_grad():
        own = [model(pixels[i : i + 1], labels=labels[i : i + 1]).loss.item() for i in range(4)]
    defer_loss(model)
    whole = model(pixels, labels=labels).loss_dict["deferred"]
    total = detection_loss_sum(whole, labels)
    expected = sum(loss * units for loss, units in zip(own, box_units(labels), strict=True))
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert [loss.item() for loss in detection_losses(whole, labels)] == pytest.approx(
        [loss * units for loss, units in zip(own, box_units(labels), strict=True)], rel=1e-5
    )
    halves = [model(pixels[part], labels=labels[part]).loss_dict["deferred"] for part in (slice(0, 2), slice(2, 4))]
    parts = [
        detection_loss_sum(half, labels[part]) for half, part in zip(halves, (slice(0, 2), slice(2, 4)), strict=True)
    ]
    assert sum(part.item() for part in parts) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_without_boxes_reach_every_weight(family: str) -> None:
    """DistributedDataParallel waits for a gradient of every weight, also where a rank has only empty images."""
    model = detector(family).train()
    defer_loss(model)
    labels = targets([0, 0])
    loss = detection_loss_sum(model(torch.rand(2, 3, 64, 64), labels=labels).loss_dict["deferred"], labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_weights_train_and_float32_ones_are_not_touched(family: str, dtype: torch.dtype) -> None:
    pixels, labels = torch.rand((4, 3, 64, 64), generator=torch.Generator().manual_seed(1)), targets([2, 0, 1, 3])

    def loss(model: Any) -> torch.Tensor:
        torch.manual_seed(2)  # of the denoising queries
        outputs = model(pixels.to(next(model.parameters()).dtype), labels=labels)
        return detection_loss_sum(outputs.loss_dict["deferred"], labels)

    plain, hooked = detector(family).train(), detector(family).train()
    defer_loss(plain)
    defer_loss(hooked)
    cast_inputs(hooked)
    expected = loss(plain)
    assert torch.equal(loss(hooked), expected)
    half = loss(hooked.to(dtype))
    half.backward()
    assert half.item() == pytest.approx(expected.item(), rel=0.3)  # rounding chooses other queries
    assert [name for name, weight in hooked.named_parameters() if weight.requires_grad and weight.grad is None] == []


def test_a_model_without_a_known_loss_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(**RESNET))
    with pytest.raises(UserError, match="D-FINE, RT-DETR"):
        defer_loss(model)


def test_a_new_head_keeps_the_boxes(tmp_path: Path) -> None:
    """Trained for two classes, tuned for three others: class weights are new, all else is as it was saved."""
    coco(tmp_path, GOOD)
    prepared = read(tmp_path)
    trained = prepared.build()
    trained.save_pretrained(tmp_path / "trained")
    prepared.artifacts.processor.save_pretrained(tmp_path / "trained")
    content = json.loads((tmp_path / "_annotations.coco.json").read_text())
    for index, category in enumerate(content["categories"]):
        category["name"] = ["red", "green", "blue"][index]
    content["annotations"].append({**box(1, 3, 4, 4, 9, 9), "id": 5})
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))

    model = {"source": str(tmp_path / "trained")}
    with pytest.raises(UserError, match="new_head"):
        read(tmp_path, model=model)
    prepared = read(tmp_path, model=model, options={"new_head": True})
    tuned = prepared.build()
    assert prepared.artifacts.labels == ["blue", "green", "red"] and tuned.config.num_labels == 3
    before, after = trained.state_dict(), tuned.state_dict()
    changed = {name for name in after if before[name].shape != after[name].shape}
    assert changed and all("class_embed" in name or "enc_score_head" in name for name in changed)
    same = [name for name in after if name not in changed and after[name].is_floating_point()]
    assert all(torch.equal(before[name], after[name]) for name in same)
    batch = prepared.batch(range(3))
    tuned.eval()
    with torch.no_grad():
        answers = prepared.answers(prepared.task.forward(tuned, batch), batch)
    assert [len(one.values["detections"]["boxes"]) for one in answers] == [36, 36, 36]  # 12 queries x 3 classes
    assert max(answers[0].values["detections"]["scores"]) < 0.6  # it begins by seeing little


def test_boxes_follow_the_size_that_the_file_gives(tmp_path: Path) -> None:
    """The images of 60 x 40 are listed as 120 x 80, and one of them is stored turned."""
    coco(tmp_path, [box(0, 1, 10, 10, 40, 20), box(1, 1, 2, 2, 30, 10)], images=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "1.png", exif=exif)
    path = tmp_path / "_annotations.coco.json"
    content = json.loads(path.read_text())
    for image, size in zip(content["images"], ((120, 80), (60, 40)), strict=True):
        image["width"], image["height"] = size
    path.write_text(json.dumps(content), encoding="utf-8")
    prepared = read(tmp_path)
    examples = prepared.datasets["train"]
    assert examples[0]["objects"]["boxes"] == [[5.0, 5.0, 20.0, 10.0]]
    assert list(examples[1]["size"]) == [40, 60] and examples[1]["objects"]["boxes"] == [[28.0, 2.0, 10.0, 30.0]]
    assert len(prepared.facts.notes) == 2
    content["images"][0]["height"] = 100
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"0\.png: width and height are 120 x 100 pixels, but the image has 60 x 40"):
        read(tmp_path)


def test_boxes_of_another_form_are_an_error_until_the_recipe_says_so(tmp_path: Path) -> None:
    coco(tmp_path, [box(0, 1, 0.1, 0.1, 0.5, 0.5), box(1, 2, 0.2, 0.2, 0.3, 0.25)])
    for policy in ("error", "skip"):
        with pytest.raises(UserError, match="no box is larger than one pixel"):
            read(tmp_path, on_bad_row=policy)
    prepared = read(tmp_path, options={"image_size": 64, "box_format": "normalized_xywh"})
    assert prepared.datasets["train"][0]["objects"]["boxes"] == [[6.0, 4.0, 30.0, 20.0]]
    rows = [{"image": str(tmp_path / "0.png"), "objects": {"bbox": [[0.1, 0.1, 0.5, 0.5]], "category": ["cat"]}}]
    encoded = prepared.task.encode(prepared.artifacts, rows, with_targets=True)
    assert encoded[0]["objects"]["boxes"] == [[6.0, 4.0, 30.0, 20.0]]
    with pytest.raises(UserError, match="not larger than one pixel"):
        read(tmp_path, options={"image_size": 64, "box_format": "xywh"})


def test_boxes_that_are_left_out_are_reported_before_the_first_step(tmp_path: Path) -> None:
    prepared = read(coco(tmp_path, [*GOOD, box(1, 1, 5, 5, 0, 10)]), on_bad_row="skip")
    assert any(note.startswith("train: 1 box left out") and "has no area" in note for note in prepared.facts.notes)


def test_class_names_that_a_dataset_of_the_hub_declares(tmp_path: Path) -> None:
    """The names are in the schema, the rows hold indices, inside of the structs of a column."""
    import datasets

    Image.new("RGB", (60, 40)).save(tmp_path / "0.png")
    category = datasets.ClassLabel(names=["zebra", "ant", "never seen"])
    features = {
        "image": datasets.Value("string"),
        "objects": {"bbox": [[datasets.Value("float32")]], "category": [category]},
    }
    row = {"image": str(tmp_path / "0.png"), "objects": {"bbox": [[5, 5, 20, 20], [30, 5, 20, 20]], "category": [1, 0]}}
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_list([row], features=datasets.Features(features)).to_parquet(path)
    prepared = read(path)
    assert prepared.artifacts.labels == ["zebra", "ant", "never seen"]
    assert prepared.datasets["train"][0]["class_labels"].tolist() == [1, 0]


def test_images_that_are_skipped_are_listed_before_the_first_step(tmp_path: Path) -> None:
    coco(tmp_path, GOOD)
    (tmp_path / "1.png").write_bytes(b"no image")
    notes = read(tmp_path, on_bad_row="skip").facts.notes
    assert notes[0].startswith("train: 1 row is skipped, 2 kept") and "1.png: not an image" in notes[0]


@pytest.mark.parametrize("softmax", [False, True])
def test_equal_scores_are_ordered_by_query_and_class(softmax: bool) -> None:
    """As half precision often gives: devices, and batches of other sizes, would choose others among them."""
    classes = 4
    logits = torch.zeros(2, 60, classes + softmax, dtype=torch.bfloat16)
    logits[1, 33, 2] = 1.0
    boxes = torch.full((2, 60, 4), 0.25)
    boxes[..., 0] = torch.arange(60) / 100
    one, other = decode_boxes(logits, boxes, softmax=softmax)
    assert len(one["scores"]) == len(other["scores"]) == MAX_DETECTIONS
    first = torch.arange(MAX_DETECTIONS)
    assert one["labels"].tolist() == (first % classes).tolist()
    centers = (one["corners"][:, 0] + one["corners"][:, 2]) / 2
    wanted = (boxes[0, first // classes, 0] - 0.125).clamp(min=0.0) + boxes[0, first // classes, 0] + 0.125
    torch.testing.assert_close(centers, wanted / 2)
    assert other["labels"][0] == 2
    if not softmax:
        assert other["labels"][1:].tolist() == (first[:-1] % classes).tolist()
