"""Proves which pixels a model sees: the processor's own for evaluation, chance changes that follow seed, epoch and id alone
for training, and that a broken image is found before the first step.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.errors import TrainingFailed, UserError
from finetune.models.processor import load_processor, output_size
from finetune.recipe.model import ModelSection
from finetune.tasks.vision.levels import pixel_values
from finetune.tasks.vision.transforms import crop_box
from tests.prepared import Prepared, prepare

RESNET = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four images of different sizes and modes, and a list of them."""
    rows, rng = [], np.random.default_rng(0)
    for index, (shape, mode) in enumerate([((10, 20), "RGB"), ((30, 12), "RGB"), ((9, 9), "L"), ((16, 16), "RGBA")]):
        channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
        pixels = rng.integers(0, 256, (*shape, *channels), dtype=np.uint8)
        Image.fromarray(pixels, mode).save(tmp_path / f"{index}.png")
        rows.append({"image": str(tmp_path / f"{index}.png"), "label": index % 2})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "train.jsonl"


def _read(rows: Path, **sections: Any) -> Prepared:
    values: dict[str, Any] = {
        "name": "x",
        "task": "image_classification",
        "model": {"source": "resnet", "init": "config", "config": RESNET},
        "data": {"train": str(rows), "validation": str(rows)},
        "options": {"image_size": 12},
        "training": {"precision": "fp32"},
        **sections,
    }
    return prepare(values)


def test_any_image_becomes_one_size_as_the_saved_processor_makes_it(pictures: Path, tmp_path: Path) -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    prepared = _read(pictures)
    batch, example = prepared.batch(), prepared.datasets["train"][1]
    assert batch.inputs["pixel_values"].shape == (4, 3, 12, 12)
    prepared.artifacts.processor.save_pretrained(tmp_path / "saved")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    wanted = processor(Image.open(pictures.parent / "1.png"), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(example["pixel_values"], wanted)
    as_the_model_has_it = pixel_values(batch.inputs, torch.float32)["pixel_values"]
    np.testing.assert_array_equal(as_the_model_has_it[1], wanted)


def test_chance_follows_seed_epoch_and_id_alone(pictures: Path) -> None:
    def pixels(epoch: int, seed: int = 17, split: str = "train", augment: str = "crop_flip") -> np.ndarray:
        examples: Any = _read(pictures, options={"image_size": 12, "augment": augment}, seed=seed).datasets[split]
        examples.epoch = epoch
        examples = pickle.loads(pickle.dumps(examples))  # as it reaches a loader process
        order = [3, 1, 0, 2] if epoch else [0, 1, 2, 3]
        found = {index: examples[index]["pixel_values"] for index in order}
        return np.stack([found[index] for index in range(4)])

    np.testing.assert_array_equal(pixels(1), pixels(1))
    assert not np.array_equal(pixels(1), pixels(2))
    assert not np.array_equal(pixels(1), pixels(1, seed=18))
    np.testing.assert_array_equal(pixels(1, split="validation"), pixels(2, split="validation"))
    flipped, plain = pixels(5, augment="flip"), pixels(0, augment="none")
    same = [np.array_equal(one, other) for one, other in zip(flipped, plain, strict=True)]
    mirrored = [np.allclose(one[:, :, ::-1], other, atol=0.02) for one, other in zip(flipped, plain, strict=True)]
    assert all(one or other for one, other in zip(same, mirrored, strict=True))


def test_a_crop_lies_inside_and_keeps_a_third() -> None:
    rng = np.random.default_rng(0)
    for width, height in [(20, 20), (100, 8), (7, 90)]:
        for _ in range(50):
            left, top, right, bottom = crop_box(width, height, rng)
            assert 0 <= left < right <= width + 1e-9 and 0 <= top < bottom <= height + 1e-9
            assert (right - left) * (bottom - top) >= 0.349 * width * height


def test_one_channel_stays_one_channel(pictures: Path) -> None:
    model = {"source": "resnet", "init": "config", "config": {**RESNET, "num_channels": 1}}
    prepared = _read(pictures, model=model)
    batch = prepared.batch([0, 2])
    assert batch.inputs["pixel_values"].shape == (2, 1, 12, 12)
    assert prepared.task.forward(prepared.build(), batch).logits.shape == (2, 2)


def test_a_broken_image_is_found_first_with_its_place(pictures: Path) -> None:
    whole = (pictures.parent / "1.png").read_bytes()
    (pictures.parent / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train\.jsonl:2: .*broken image"):
        _read(pictures)
    prepared = _read(pictures, data={"train": str(pictures), "on_bad_row": "skip"})
    assert list(prepared.datasets["train"].ids) == [0, 2, 3]
    (pictures.parent / "2.png").unlink()
    with pytest.raises(TrainingFailed, match="since it was checked") as caught:
        prepared.datasets["train"][1]
    assert caught.value.where.endswith("train.jsonl:3")
    assert prepared.facts.values["train classes"] == {"0": 2, "1": 1}


@pytest.mark.parametrize(
    ("asked", "init", "expected"), [("auto", "pretrained", 0), ("auto", "config", 3), ("frozen", "config", 0)]
)
def test_batch_norm_is_frozen_for_pretrained_weights(
    pictures: Path, tmp_path: Path, asked: str, init: str, expected: int
) -> None:
    first = _read(pictures)
    first.build().save_pretrained(tmp_path / "base")
    first.artifacts.processor.save_pretrained(tmp_path / "base")
    source = {"source": str(tmp_path / "base")} if init == "pretrained" else {"source": "resnet", "config": RESNET}
    model = _read(pictures, model={**source, "init": init, "batch_norm": asked}).build()
    model.train()
    learning = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.training]
    assert len(learning) == expected


def test_vision_transformer_takes_the_size_that_it_was_made_for(pictures: Path, tmp_path: Path) -> None:
    config = {
        "patch_size": 4,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = {"source": "vit", "init": "config", "config": config}
    prepared = _read(pictures, model=model)
    built = prepared.build()
    assert built.config.image_size == 12
    built.save_pretrained(tmp_path / "vit")
    prepared.artifacts.processor.save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="expects 12 x 12 pixels, but the image processor returns 16 x 16"):
        _read(pictures, model={"source": str(tmp_path / "vit")}, options={"image_size": 16})


def test_a_processor_that_keeps_shapes_is_replaced(tmp_path: Path) -> None:
    from transformers import AutoConfig, CLIPImageProcessorPil

    CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(tmp_path)
    config = AutoConfig.for_model("resnet", **RESNET)
    processor = load_processor(ModelSection(source="x", processor=str(tmp_path)), config)
    assert output_size(processor, config) == (32, 32)
    assert processor.image_mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_what_is_changed_in_images_is_reported_once_also_from_the_cache(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0x4000, np.uint16)).save(tmp_path / "wide.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    rows = [{"image": name, "label": name} for name in ("wide.png", "clear.png", "wide.png")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        notes = _read(tmp_path / "train.jsonl", data={"train": str(tmp_path / "train.jsonl")}).facts.notes
        assert [note.split(" (")[0] for note in notes] == [
            "train: 2 rows: the image has more than 8 bits per channel; values are divided by 256",
            "train: 1 row: transparent pixels are blended with white",
        ]
        assert "train.jsonl:1" in notes[0] and "train.jsonl:2" in notes[1]


def test_a_value_range_reaches_training_and_prediction(tmp_path: Path) -> None:
    for name, value in (("dark", 0.25), ("bright", 0.75)):
        Image.new("F", (8, 8), value).save(tmp_path / f"{name}.tif")
    rows = [{"image": f"{name}.tif", "label": name} for name in ("dark", "bright")]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"dark\.tif: pixels are floats from 0\.25.* set options\.value_range"):
        _read(path, data={"train": str(path)})
    prepared = _read(path, data={"train": str(path)}, options={"image_size": 8, "value_range": [0, 1]})
    images = [np.asarray(prepared.datasets["train"][index]["pixel_values"]) for index in range(2)]
    assert images[0].max() < images[1].min()
    rows = [{"image": str(tmp_path / row["image"])} for row in rows]
    encoded = prepared.task.encode(prepared.artifacts, rows, with_targets=False)
    np.testing.assert_array_equal(encoded[0]["pixel_values"], images[0])


def test_a_missing_picture_that_is_put_in_place_is_seen(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = tmp_path / "train.jsonl"
    path.write_text('{"image": "a.png", "label": "x"}\n{"image": "b.png", "label": "y"}\n')
    for _ in range(2):
        with pytest.raises(UserError, match=r"b\.png cannot be opened: No such file"):
            _read(path, data={"train": str(path)})
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert len(_read(path, data={"train": str(path)}).datasets["train"]) == 2
    (tmp_path / "b.png").write_bytes(b"damaged later")
    with pytest.raises(UserError, match=r"not an image .*b\.png"):
        _read(path, data={"train": str(path)})
