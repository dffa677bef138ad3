"""The repeated layers of a model, as transformers marks them for gradient checkpointing, and what its kind is called."""

from __future__ import annotations

from torch import nn


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """[] for a model without such layers, as most CNNs are."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]


def kind_of(model: nn.Module) -> str:
    """Its model type, such as "llama"; the name of its class where it has none."""
    kind: str = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return kind
