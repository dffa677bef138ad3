"""Proves that blocks are found in models of many families by watching them run, that cuts are even and never inside a
residual block, that a stage computes and holds only its own layers, and that models that cannot be split are rejected.
"""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from finetune.errors import UserError
from finetune.models.blocks import Block, find_blocks
from finetune.models.stages import cut_evenly, split_model

FAMILIES = {
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}, 10),
    "regnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8}, 8),
    "convnext": ({"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "patch_size": 2}, 12),
    "vit": ({"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
             "num_attention_heads": 2}, 5),
}  # fmt: skip
PIXELS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def build(family, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**FAMILIES[family][0], **changes})
    return AutoModelForImageClassification.from_config(config)


def run(model):
    return model(pixel_values=PIXELS)


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_one_after_the_other_are_the_model_in_training_too(family):
    model, copy = build(family), build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stages = split_model(model, run, 3)
    assert len(stages.blocks) == FAMILIES[family][1]
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()
    )  # observed, not changed
    model.train()
    copy.train()
    given = None
    for number in range(3):
        given = stages.run(number, given, lambda: run(model))
    expected = run(copy)
    assert torch.equal(given.logits, expected.logits)
    given.logits.square().sum().backward()
    expected.logits.square().sum().backward()
    theirs = dict(copy.named_parameters())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None), name
        assert parameter.grad is None or torch.allclose(parameter.grad, theirs[name].grad, atol=1e-6), name


def test_a_residual_block_is_never_split():
    blocks, total = find_blocks(build("resnet"), run)
    names = [block.name for block in blocks]
    assert names[3:7] == ["resnet.embedder.pooler", "resnet.encoder.stages.0.layers.0", "resnet.encoder.stages.1.layers.0",
                          "resnet.encoder.stages.1.layers.1"]  # fmt: skip
    assert names[-1] == "classifier.1"
    assert sum(block.cost for block in blocks) == total > 0


def test_a_stage_holds_only_its_own_weights_under_their_names():
    model = build("convnext")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    stages = split_model(model, run, 2)
    stages.keep(1)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    held = {name for name, parameter in model.named_parameters() if not parameter.is_meta}
    assert held == {name for name, owner in stages.owners.items() if owner == 1}
    assert "classifier.weight" in held and "convnext.layernorm.weight" in held
    assert sum(dict(model.named_parameters())[name].numel() for name in held) == stages.stages[1].weights
    with pytest.raises(RuntimeError, match="meta"):  # weights of other stages cannot be used
        stages.run(0, None, lambda: run(model)).sum().item()


def blocks_of(*costs, size=1, **others):
    return [Block(str(i), nn.Identity(), cost, size, **others) for i, cost in enumerate(costs)]


@pytest.mark.parametrize(
    ("costs", "count", "rest", "bounds"),
    [
        ((1, 1, 1, 1), 2, 0, [(0, 2), (2, 4)]),
        ((5, 1, 1, 1), 2, 0, [(0, 1), (1, 4)]),
        ((1, 1, 1, 5), 3, 0, [(0, 1), (1, 3), (3, 4)]),
        ((1, 1, 1, 1), 2, 2, [(0, 3), (3, 4)]),
        ((2, 2, 2), 1, 0, [(0, 3)]),
    ],
)
def test_the_cost_of_the_costliest_stage_is_minimal(costs, count, rest, bounds):
    assert cut_evenly(blocks_of(*costs), count, rest) == bounds


def test_among_equal_splits_the_smallest_tensors_are_sent():
    blocks = [Block(str(i), nn.Identity(), *each) for i, each in enumerate([(1, 9), (0, 4), (0, 1), (1, 4)])]
    assert cut_evenly(blocks, 2) == [(0, 3), (3, 4)]


def test_no_split_before_an_in_place_block_nor_around_frozen_layers():
    blocks = blocks_of(1, 1, 1, 1)
    blocks[2] = Block("2", nn.Identity(), 1, 1, in_place=True)
    assert cut_evenly(blocks, 2) in ([(0, 1), (1, 4)], [(0, 3), (3, 4)])
    frozen = blocks_of(1, 1, 1, trainable=False) + blocks_of(1, 1)
    assert cut_evenly(frozen, 2) == [(0, 4), (4, 5)]
    with pytest.raises(UserError, match="trainable weights"):
        cut_evenly(frozen, 4)


class Twice(nn.Module):
    """One layer used at two depths."""

    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return {"logits": self.layer(self.layer(self.first(x)))}


class Skips(nn.Module):
    """The last layer needs the output of the first one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x):
        first = self.layers[0](x)
        return {"logits": self.layers[2](self.layers[1](first)) + first}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return {"logits": self.second(self.first(x))}


@pytest.mark.parametrize(
    ("model", "count", "reason"),
    [
        (Twice(), 2, "1 consecutive block, too few for 2 stages"),
        (Skips(), 2, "more than one tensor"),
        (Tied(), 2, "shared by two stages"),
    ],
)
def test_models_that_cannot_be_split_are_rejected_with_the_reason(model, count, reason):
    with pytest.raises(UserError, match=reason):
        split_model(model, lambda module: module(torch.randn(2, 4)), count)


def test_more_stages_than_blocks_are_rejected():
    with pytest.raises(UserError, match=r"5 consecutive blocks, too few for 6 stages"):
        split_model(build("vit"), run, 6)


class InPlace(nn.Module):
    """Has an activation that modifies its input in place, as in torchvision."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))

    def forward(self, x):
        return {"logits": self.layers(x)}


def test_in_place_blocks_are_detected():
    model = InPlace()
    blocks, _ = find_blocks(model, lambda module: module(torch.randn(2, 4)))
    assert [(block.name, block.in_place) for block in blocks] == [
        ("layers.0", False), ("layers.1", True), ("layers.2", False),
    ]  # fmt: skip
