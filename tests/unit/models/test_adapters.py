"""Proves that adapters go where the recipe says, heads are trained whole, and a mistyped target is told.

That a trained adapter merges into equal predictions is proved for every task in tests/contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSequenceClassification,
)

from finetune.errors import UserError
from finetune.models.adapters import add_adapter
from finetune.models.config import load_config
from finetune.models.detection import class_modules
from finetune.models.head import head_names
from finetune.models.load import load_model
from finetune.recipe.model import AdapterSection, ModelSection
from tests.contract.examples import DFINE

RESNET = ModelSection(
    source="resnet",
    init="config",
    config={"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"},
)


def _bert(folder: Path, **values: Any) -> Any:
    model = ModelSection(source=str(folder), **values)
    return load_model(
        AutoModelForSequenceClassification, model, load_config(model), dtype=torch.float32, seed=3, new_head=True
    )[0]


def _resnet() -> Any:
    return load_model(AutoModelForImageClassification, RESNET, load_config(RESNET), dtype=torch.float32, seed=3)[0]


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_all_linear_layers_of_the_body_and_the_head_whole(tiny_bert: Path, kind: str) -> None:
    model = _bert(tiny_bert)
    assert head_names(model) == ["classifier"]
    adapted = add_adapter(model, AdapterSection(kind=kind, rank=2), "SEQ_CLS", head_names(model), seed=1)  # type: ignore[arg-type]
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    carriers = {name.split(".lora_")[0] for name in trained if ".lora_A" in name}
    assert len(carriers) == 7  # query, key, value, two of attention output and feed-forward, pooler
    assert any("classifier.modules_to_save" in name for name in trained)
    assert not any("classifier" in name for name in carriers)
    assert any("magnitude" in name for name in trained) == (kind == "dora")


def test_first_weights_come_from_the_seed(tiny_bert: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        torch.rand(4)
        adapted = add_adapter(_bert(tiny_bert), AdapterSection(rank=2), "SEQ_CLS", [], seed=seed)
        return next(weight for name, weight in adapted.named_parameters() if "lora_A" in name).detach()

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


@pytest.mark.parametrize("key", ["targets", "save_modules"])
def test_a_name_that_matches_nothing_is_reported_with_the_nearest(tiny_bert: Path, key: str) -> None:
    adapter = AdapterSection(**{key: ["qury"]})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"adapter.{key}: no module is called 'qury'") as caught:
        add_adapter(_bert(tiny_bert), adapter, "SEQ_CLS", [], seed=1)
    assert "query" in caught.value.remedy


def test_a_network_without_linear_layers_names_what_it_has() -> None:
    model = _resnet()
    with pytest.raises(UserError, match="no linear layer") as caught:
        add_adapter(model, AdapterSection(), None, head_names(model), seed=1)
    assert "convolution" in caught.value.remedy
    adapted = add_adapter(_resnet(), AdapterSection(targets=["convolution"]), None, ["classifier"], seed=1)
    assert any("lora_A" in name for name, _ in adapted.named_parameters())


def test_gradients_reach_the_adapter_through_checkpointing(tiny_bert: Path) -> None:
    adapted = add_adapter(
        _bert(tiny_bert, gradient_checkpointing=True), AdapterSection(rank=2), "SEQ_CLS", ["classifier"], seed=1
    ).train()
    adapted(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    grads = [weight.grad for name, weight in adapted.named_parameters() if "lora_B" in name]
    assert grads and all(grad is not None and grad.any() for grad in grads)


def test_a_detector_that_peft_cannot_adapt_is_reported() -> None:
    section = ModelSection(source="d_fine", init="config", config=DFINE)
    kind = AutoModelForObjectDetection
    model, _ = load_model(kind, section, load_config(section), dtype=torch.float32, seed=3, heads=class_modules)
    with pytest.raises(UserError, match="peft cannot add an adapter to a DFineForObjectDetection") as caught:
        add_adapter(model, AdapterSection(targets=["q_proj"]), None, [], seed=1)
    assert "model.freeze" in caught.value.remedy
