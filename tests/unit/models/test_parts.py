"""A detector is cut into stages that give its outputs: where several tensors are passed on, and never where more is needed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from finetune.errors import UserError
from finetune.models.dataflow import watch
from finetune.models.detection import defer_loss, detect
from finetune.models.parts import find_cuts, split_parts
from tests.unit.tasks.test_object_detection import FAMILIES, RESNET, SMALL, detector

DETR = {
    "backbone_config": {**RESNET, "out_indices": [4]}, "d_model": 32, "num_queries": 10, "encoder_layers": 1,
    "decoder_layers": 1, **SMALL,
}  # fmt: skip
PIXELS = torch.rand((3, 3, 64, 64), generator=torch.Generator().manual_seed(1))


def run(model: Any, examples: int) -> Any:
    return detect(model, {"pixel_values": PIXELS[:examples]})


def open_detector(family: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(FAMILIES, "detr", DETR)
    model = detector(family).eval().requires_grad_(False)
    defer_loss(model)
    return model


@pytest.mark.parametrize("family", [*FAMILIES, "detr"])
def test_stages_with_their_own_weights_alone_give_the_boxes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage is a model of its own, of which the weights of the others are gone; three images, which no trace saw."""
    whole = run(open_detector(family, monkeypatch), 3)
    output, held = None, list[set[str]]()
    for number in range(2):
        model = open_detector(family, monkeypatch)
        parts = split_parts(model, run, 2, key="--stages")
        parts.keep(number)
        held.append({name for name, weight in model.named_parameters() if not weight.is_meta})
        output = parts.run(number, output, partial(run, model, 3))
    assert (output.logits - whole.logits).abs().max() < 1e-5 and (output.boxes - whole.boxes).abs().max() < 1e-5
    assert held[0] and held[1] and held[0] | held[1] == {name for name, _ in model.named_parameters()}
    assert len(held[0] & held[1]) <= 2, "what both compute: embeddings of positions, say"


@pytest.mark.parametrize("family", ["d_fine", "rt_detr_v2"])
def test_backbone_encoder_and_decoder_can_be_three_stages(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_detector(family, monkeypatch)
    flow = watch(model, lambda: run(model, 2))
    names = [flow.calls[cut].name for cut in find_cuts(flow)]
    assert names[-1] == "model.encoder" and names[-2].startswith("model.backbone")
    assert not any(name.startswith(("model.decoder", "model.encoder.")) for name in names)
    lines = split_parts(model, run, 3, key="--stages").describe()
    assert [line.split(":")[0] for line in lines] == [f"stage {number} of 3" for number in (1, 2, 3)]
    assert all(" 0% of the cost" not in line for line in lines)


def test_more_stages_than_there_are_cuts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_detector("d_fine", monkeypatch)
    with pytest.raises(UserError, match=r"can be cut into \d+ stages, too few for 99") as caught:
        split_parts(model, run, 99, key="--stages")
    assert caught.value.remedy.startswith("Set --stages to at most ")
    assert torch.equal(run(model, 2).logits, run(model, 2).logits), "the model is as it was"


class Crossing(nn.Module):
    """first, second, third; `later` says what third needs beside the output of second."""

    def __init__(self, later: str) -> None:
        super().__init__()
        self.later = later
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        scaled = inputs * 2
        early = self.first(inputs)
        number = float(early.sum()) if self.later == "number" else 0.0
        middle = self.third(self.second(early))
        return {"logits": middle + {"first": early, "inputs": scaled}.get(self.later, number)}


@pytest.mark.parametrize(("later", "cuts"), [("nothing", 2), ("inputs", 2), ("first", 1), ("number", 1)])
def test_a_cut_is_made_only_where_nothing_else_is_needed(later: str, cuts: int) -> None:
    """inputs: computed again. first: a tensor from before, which is the output of the first cut. number: a value that left the
    tensors, which comparing the outputs finds.
    """
    torch.manual_seed(0)
    model, inputs = Crossing(later).eval(), torch.randn(2, 4)

    def call(model: nn.Module, examples: int) -> Any:
        return model(inputs[:examples])

    assert len(split_parts(model, call, cuts + 1, key="--stages")) == cuts + 1
    with pytest.raises(UserError, match=f"can be cut into {cuts + 1} stage"):
        split_parts(Crossing(later).eval(), call, cuts + 2, key="--stages")


class Mixing(nn.Module):
    """Its second layer sees the windows of all images as one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(2, 2), nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        windows = self.second(self.first(inputs).reshape(-1, 2))
        return {"logits": self.third(windows.reshape(-1, 4))}


def test_tensors_that_are_not_one_entry_for_each_image_are_not_passed_on() -> None:
    model, inputs = Mixing().eval(), torch.randn(2, 4)
    flow = watch(model, lambda: model(inputs))
    assert [flow.calls[cut].name for cut in find_cuts(flow)] == ["first"]
