"""Proves that mixing, class weights and strong augmentation depend on (seed, epoch, id) alone, and that the loss they make
is an exact sum; that frozen weights rest and deep layers learn slower.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from finetune.errors import UserError
from finetune.models.freeze import freeze_weights
from finetune.tasks.class_outputs import weighted_loss_sum
from finetune.tasks.class_weights import weigh_classes
from finetune.tasks.vision.mixing import Mix, choose_mix, mix_pixels
from finetune.tasks.vision.transforms import change, erase
from finetune.training.parameter_groups import layer_depths, parameter_groups
from tests.contract.examples import EXAMPLES
from tests.prepared import Prepared, prepare


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    example = next(example for example in EXAMPLES if example.task == "image_classification")
    options = {"image_size": 16, "augment": "strong", "mixup": 0.4, "cutmix": 1.0, "class_weights": {"high": 3.0}}
    return prepare(example.recipe(tmp_path, options=options))


def test_an_example_is_mixed_alike_wherever_it_is_asked_for(prepared: Prepared) -> None:
    examples = prepared.datasets["train"]
    first = [examples[index] for index in range(8)]
    again = [examples[index] for index in reversed(range(8))][::-1]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one["pixel_values"], other["pixel_values"])
        assert (one["partner"], one["share"]) == (other["partner"], other["share"])
    examples.epoch = 1
    assert [one["share"] for one in first] != [examples[index]["share"] for index in range(8)]


def test_the_mixed_loss_is_a_sum_however_the_batch_is_split(prepared: Prepared) -> None:
    model = prepared.build().eval()
    sums = []
    for size in (8, 3, 1):
        parts = [prepared.batch(range(start, min(start + size, 8))) for start in range(0, 8, size)]
        sums.append(sum(prepared.loss_sum(model, part).item() for part in parts))
    assert sums[1:] == pytest.approx([sums[0]] * 2, rel=1e-5)
    assert prepared.artifacts.settings["class_weights"] == [3.0, 1.0]  # high, low


def test_the_weighted_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
    labels, partners, shares = torch.tensor([0, 1]), torch.tensor([2, 1]), torch.tensor([0.75, 0.1])
    logs = functional.log_softmax(logits, dim=-1)
    given = {"partners": partners, "shares": shares, "label_smoothing": 0.0}
    plain = weighted_loss_sum(logits, labels, class_weights=None, **given)
    assert plain.item() == pytest.approx(-(0.75 * logs[0, 0] + 0.25 * logs[0, 2] + logs[1, 1]).item())
    weighted = weighted_loss_sum(logits, labels, class_weights=torch.tensor([2.0, 1.0, 4.0]), **given)
    assert weighted.item() == pytest.approx(-(1.5 * logs[0, 0] + logs[0, 2] + logs[1, 1]).item())


def test_class_weights() -> None:
    counts = {"cat": 10, "dog": 30, "never": 0}
    balanced = weigh_classes("balanced", counts)
    assert balanced == [2.0, pytest.approx(2 / 3), 1.0]
    assert weigh_classes("none", counts) is None
    with pytest.raises(UserError, match="Did you mean dog"):
        weigh_classes({"dogs": 2.0}, counts)
    with pytest.raises(UserError, match="not above 0"):
        weigh_classes({"dog": 0.0}, counts)


def test_a_pasted_box_counts_its_pixels() -> None:
    own, other = np.zeros((3, 10, 20), np.float32), np.ones((3, 10, 20), np.float32)
    mixed, share = mix_pixels(own, other, Mix(0, 0.75, True, (1.0, 0.0)))
    assert share == pytest.approx(1 - mixed[0].mean()) == pytest.approx(0.75)
    assert mixed[:, -1, 0].all() and not mixed[:, 0].any()  # at the lower left corner
    blended, share = mix_pixels(own, other, Mix(0, 0.75, False, (0.0, 0.0)))
    assert share == 0.75 and np.allclose(blended, 0.25)
    assert choose_mix(3, 10, mixup=0.0, cutmix=0.0, seed=1, epoch=0) is None
    kinds = {choose_mix(id, 10, mixup=0.2, cutmix=1.0, seed=1, epoch=0).cut for id in range(40)}  # type: ignore[union-attr]
    assert kinds == {True, False}


def test_every_strong_change_keeps_size_and_mode() -> None:
    rng = np.random.default_rng(0)
    for mode in ("RGB", "L"):
        image = Image.fromarray(np.arange(48 * 32, dtype=np.uint32).astype(np.uint8).reshape(32, 48)).convert(mode)
        changed = [change(image, rng) for _ in range(60)]
        assert {(one.size, one.mode) for one in changed} == {(image.size, mode)}
        assert sum(one.tobytes() != image.tobytes() for one in changed) > 35
    pixels = np.zeros((3, 20, 20), np.float32)
    erase(pixels, rng)
    assert 0.01 < (pixels != 0).mean() < 0.3


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {"embeddings": nn.Linear(2, 2), "layers": nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])}
        )
        self.classifier = nn.Linear(2, 2)


def test_layers_learn_at_their_share_of_the_rate() -> None:
    model = Tower()
    depths = layer_depths([name for name, _ in model.named_parameters()])
    assert depths["body.embeddings.weight"] == 0 and depths["body.layers.0.bias"] == 1
    assert depths["body.layers.2.weight"] == 3 and depths["classifier.weight"] == 4
    groups = parameter_groups(model, 0.1, 0.5)
    scales = {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}
    assert scales[id(model.classifier.weight)] == 1.0
    assert scales[id(model.body["layers"][2].bias)] == 0.5  # type: ignore[index]
    assert scales[id(model.body["embeddings"].weight)] == 0.5**4
    assert sum(len(group["params"]) for group in groups) == len(scales) == 10
    assert [group["lr_scale"] for group in parameter_groups(model, 0.1)] == [1.0, 1.0]


def test_frozen_weights_are_named_by_patterns() -> None:
    model = Tower()
    assert freeze_weights(model, ["body.embeddings", "*.layers.0.*"]) == 4
    assert not model.body["layers"][0].weight.requires_grad and model.classifier.weight.requires_grad  # type: ignore[index]
    with pytest.raises(UserError, match=r"'body.layer.1' matches no weight(.|\n)*Did you mean body\.layers\.1"):
        freeze_weights(model, ["body.layer.1"])
    with pytest.raises(UserError, match="all weights are frozen"):
        freeze_weights(model, ["*"])
