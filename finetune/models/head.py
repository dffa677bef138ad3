"""The head of a model, that is the modules outside its body: finds it, and replaces it by a newly initialized one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune.models.meta import build_on_meta

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def head_names(model: nn.Module) -> list[str]:
    """Names of the top-level modules with weights outside the body: BertForSequenceClassification -> ["classifier"].

    A head that shares its weights with the embeddings, as in many language models, is not included.
    """
    body = getattr(model, "base_model_prefix", "")
    body_weights = {id(weight) for weight in getattr(model, body, nn.Identity()).parameters()}
    return [
        name
        for name, child in model.named_children()
        if name != body and any(id(weight) not in body_weights for weight in child.parameters())
    ]


def embedding_modules(model: Any) -> list[Any]:
    """The input and output embeddings that the model has; [] for a model of images."""
    found = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, name)()
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            found.append(module)
    return found


def replace_head(model: Any, names: Sequence[str], config: PreTrainedConfig, *, dtype: torch.dtype, seed: int) -> None:
    """Replace the modules `names` (dotted) of `model` by randomly initialized ones with the shapes of `config`.

    The label names and the number of labels of the model become those of `config`. Random numbers are drawn from `seed`
    for these modules only, so the weights do not depend on the rank, the ZeRO stage, or other new weights.
    Under ZeRO-3, the new modules are not sharded until the engine is created.
    """
    fresh: Any = build_on_meta(type(model), config)
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for name in names:
            head = fresh.get_submodule(name).to_empty(device="cpu")
            for module in head.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            for module in head.modules():
                fresh._init_weights(module)
            _replace(model, name, head.to(device, dtype))
    model.config.id2label, model.config.label2id = config.id2label, config.label2id
    if hasattr(model, "num_labels"):
        model.num_labels = config.num_labels


def _replace(model: nn.Module, name: str, head: nn.Module) -> None:
    """Replace the module `name` in all places where the model uses this instance (detectors share heads)."""
    old = model.get_submodule(name)
    for module in list(model.modules()):
        for name_in_parent, child in list(module.named_children()):
            if child is old:
                setattr(module, name_in_parent, head)
