"""`--stages`: what cannot be answered in stages is refused with a way out, and how a batch is cut and put together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from finetune.app.asked_model import open_model
from finetune.app.asked_stages import _made_up, check_stages, open_stages
from finetune.app.predict import _processes
from finetune.app.predict_options import PredictOptions, check_options, check_replicas
from finetune.distributed.staged_model import cut_batch, join_outputs
from finetune.errors import UserError
from finetune.models.placement import Placement
from tests.distributed.test_staged_answers import write_classifier

NO_SESSION: Any = None  # of ranks: what is refused is refused before they meet


def options(**changes: Any) -> PredictOptions:
    return PredictOptions("model", ("rows.jsonl",), Path("out.jsonl"), **changes)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"slices": 2}, "--slices and --stages are two ways"),
        ({"layers": 2}, "--layers and --stages are two ways"),
        ({"embed": True}, "embeddings are not computed in stages"),
    ],
)
def test_options_that_exclude_stages(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        check_options(options(stages=2, **changes))
    assert caught.value.remedy
    check_options(options(stages=2))


def test_processes_make_whole_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="1 process is no whole number of replicas of 2") as caught:
        check_replicas(1, options(stages=2))
    assert caught.value.where == "--stages" and "Start 2, 4" in caught.value.remedy
    monkeypatch.setattr("finetune.app.predict.count_gpus", lambda: 0)
    assert _processes(options(stages=3)) == 3
    monkeypatch.setattr("finetune.app.predict.count_gpus", lambda: 5)
    assert _processes(options(stages=2)) == 4
    with pytest.raises(UserError, match="6 stages on 5 GPUs"):
        _processes(options(stages=6))


def test_the_same_output_goes_on_with_other_stages() -> None:
    assert options(stages=2).asked() == options().asked()
    assert options(stages=2).arguments()[-2:] == ["--stages", "2"]


def test_other_tasks_and_quantized_weights_are_refused() -> None:
    def check(task: str, quantization: str) -> None:
        recipe = SimpleNamespace(task=task, model=SimpleNamespace(quantization=quantization))
        check_stages(SimpleNamespace(name="m"), SimpleNamespace(recipe=recipe))  # type: ignore[arg-type]

    check("image_classification", "none")
    check("object_detection", "none")
    for task in ("token_classification", "text_classification", "causal_lm"):
        with pytest.raises(UserError, match=f"a model of the task {task} is not answered in stages") as caught:
            check(task, "none")
        assert "image_classification" in caught.value.what and "--layers" in caught.value.remedy
    with pytest.raises(UserError, match="quantized weights"):
        check("image_classification", "4bit")


def test_more_stages_than_blocks_are_refused(tmp_path: Path) -> None:
    asked = open_model(write_classifier(tmp_path / "model", "vit"))
    with pytest.raises(UserError, match="6 consecutive blocks, too few for 9 stages") as caught:
        open_stages(asked.task, asked.artifacts, asked.module, NO_SESSION, 9)
    assert (caught.value.where, caught.value.remedy) == ("--stages", "Set --stages to at most 6.")


class Windows(nn.Module):
    """Its linear layers see the windows of all images as one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.flat = nn.Conv2d(3, 4, 4, stride=4), nn.Flatten(0, 2)
        self.middle, self.last = nn.Linear(8, 16), nn.Linear(16, 64)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        windows = self.middle(self.flat(self.first(pixel_values)))
        return ImageClassifierOutput(logits=self.last(windows).reshape(len(pixel_values), -1))


def test_stages_that_mix_the_images_are_refused(tmp_path: Path) -> None:
    asked = open_model(write_classifier(tmp_path / "model", "vit"))
    with pytest.raises(UserError, match="not one entry for each image") as caught:
        open_stages(asked.task, asked.artifacts, Windows(), NO_SESSION, 2)
    assert caught.value.where == "--stages"


def test_the_split_does_not_depend_on_data(tmp_path: Path) -> None:
    asked = open_model(write_classifier(tmp_path / "model", "vit"))
    first, again = (_made_up(asked.task, asked.artifacts).inputs["pixel_values"] for _ in range(2))
    assert first.shape == (2, 3, 32, 32) and torch.equal(first, again) and not torch.equal(first[0], first[1])


@pytest.mark.parametrize(("examples", "sizes"), [(1, [1]), (3, [1, 1, 1]), (4, [1] * 4), (11, [2, 3, 3, 3])])
def test_a_batch_is_cut_and_put_together(examples: int, sizes: list[int]) -> None:
    pixels = torch.randn(examples, 3, 2, 2)
    parts = cut_batch({"pixel_values": pixels, "interpolate": True}, 4)
    assert sorted(len(part["pixel_values"]) for part in parts) == sizes
    assert all(part["interpolate"] for part in parts)
    joined = join_outputs([ImageClassifierOutput(logits=part["pixel_values"]) for part in parts])
    assert isinstance(joined, ImageClassifierOutput) and torch.equal(joined.logits, pixels)


def test_a_model_that_is_refused_names_the_option(tmp_path: Path) -> None:
    """Before the ranks meet, in load_found."""
    from tests.distributed.test_slices import write_model

    with pytest.raises(UserError, match="a model of the task text_classification is not answered in stages"):
        open_model(write_model(tmp_path / "model", replies=False), placement=Placement(stages=2))
