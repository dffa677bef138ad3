"""The head of a model: the modules beside its body, made anew from the seed alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def head_names(model: nn.Module) -> list[str]:
    """Top-level modules with weights outside the body: BertForSequenceClassification -> ["classifier"].

    A head that shares its weight with the embeddings (many language models) is no head of its own.
    """
    body = getattr(model, "base_model_prefix", "")
    inside = {id(weight) for weight in getattr(model, body, nn.Identity()).parameters()}
    return [
        name
        for name, child in model.named_children()
        if name != body and any(id(weight) not in inside for weight in child.parameters())
    ]


def replace_head(model: Any, names: Sequence[str], config: PreTrainedConfig, *, dtype: torch.dtype, seed: int) -> None:
    """Put new, randomly initialised modules `names` (dotted) into `model`, shaped by `config`; model.config becomes `config`.

    The random numbers are drawn for these modules alone, from `seed`, so that neither the rank, nor the ZeRO stage, nor
    what else was missing changes them. Under ZeRO-3 they begin whole; the engine shards them.
    """
    with torch.device("meta"):
        fresh = type(model)(copy.deepcopy(config))
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
            _put(model, name, head.to(device, dtype))
    model.config.id2label, model.config.label2id = config.id2label, config.label2id
    if hasattr(model, "num_labels"):
        model.num_labels = config.num_labels


def _put(model: nn.Module, name: str, head: nn.Module) -> None:
    """In place of the module `name`, wherever in the model that very module stands (detectors share heads)."""
    old = model.get_submodule(name)
    for module in list(model.modules()):
        for child, there in list(module.named_children()):
            if there is old:
                setattr(module, child, head)
