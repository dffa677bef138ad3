"""Proves that kinds of inputs are found in their folder: a third one is one file, and artifacts and merging know it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from finetune.errors import UserError
from finetune.models import inputs
from finetune.models.inputs import Known, input_kinds, kind_of_model, kind_of_processor
from finetune.models.merging import random_inputs
from finetune.recipe.card import NoOptions
from finetune.tasks.artifacts import TaskArtifacts, load_artifacts

AUDIO = '''
"""Waveforms of audio, made by a feature extractor."""

import torch

from finetune.models.inputs.kind import ROWS, InputKind


class Extractor:
    model_input_names = ["input_values", "attention_mask"]

    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "rate").write_text("16000")


def random(model, known, draw):
    return {"input_values": torch.randn(ROWS, 400, generator=draw)}


INPUT = InputKind("audio", "input_values", lambda folder: Extractor(), random)
'''


@pytest.fixture
def audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "audio.py").write_text(AUDIO)
    monkeypatch.setattr(inputs, "__path__", [*inputs.__path__, str(tmp_path)])
    input_kinds.cache_clear()
    yield input_kinds()["audio"]
    input_kinds.cache_clear()
    sys.modules.pop("finetune.models.inputs.audio")


def make_model(main_input: str) -> Any:
    return SimpleNamespace(main_input_name=main_input, parameters=lambda: iter([torch.zeros(1)]))


def test_what_is_known() -> None:
    assert {name: kind.main_input for name, kind in input_kinds().items()} == {
        "image": "pixel_values",
        "tokenizer": "input_ids",
    }
    assert kind_of_processor(transformers.ViTImageProcessorPil()).processor == "image"
    with pytest.raises(ValueError, match="SimpleNamespace is neither image nor tokenizer"):
        kind_of_processor(SimpleNamespace())
    with pytest.raises(ValueError, match="takes input_values, which is of no kind"):
        kind_of_model(make_model("input_values"))


def test_pixels_have_the_size_of_the_run_or_of_the_model() -> None:
    model = make_model("pixel_values")
    model.config = SimpleNamespace(image_size=8, num_channels=1)
    assert random_inputs(model)["pixel_values"].shape == (4, 1, 8, 8)
    assert random_inputs(model, Known(settings={"image_size": [6, 10]}))["pixel_values"].shape == (4, 1, 6, 10)
    model.config = SimpleNamespace()
    assert random_inputs(model)["pixel_values"].shape == (4, 3, 224, 224)


def test_a_third_kind_is_one_file(audio: Any, tmp_path: Path) -> None:
    card: Any = SimpleNamespace(name="speech", options=NoOptions)
    TaskArtifacts("speech", NoOptions(), audio.load(tmp_path)).save(tmp_path / "saved")
    loaded = load_artifacts(tmp_path / "saved", card)
    assert type(loaded.processor).__name__ == "Extractor" and (tmp_path / "saved/processor/rate").is_file()
    found = random_inputs(make_model("input_values"))
    assert found["input_values"].shape == (4, 400)
    assert torch.equal(found["input_values"], random_inputs(make_model("input_values"))["input_values"])


def test_a_processor_of_a_kind_that_is_not_there_is_refused(audio: Any, tmp_path: Path) -> None:
    card: Any = SimpleNamespace(name="speech", options=NoOptions)
    TaskArtifacts("speech", NoOptions(), audio.load(tmp_path)).save(tmp_path / "saved")
    path = tmp_path / "saved" / "artifacts.json"
    path.write_text(path.read_text().replace('"audio"', '"video"'))
    with pytest.raises(UserError, match="of the kind 'video'; this version knows audio, image, tokenizer"):
        load_artifacts(tmp_path / "saved", card)
