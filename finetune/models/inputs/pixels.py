"""Pixels of images, made by an image processor that needs no torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# Older releases export a placeholder from the top that asks for torchvision; the class itself does without it.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from finetune.models.inputs.kind import ROWS, InputKind, Known
from finetune.models.processor import DEFAULT_SIZE, model_size, num_channels


def _load(folder: Path) -> Any:
    return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, backend="pil")


def _random(model: Any, known: Known, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """[ROWS, channels, height, width] from a normal distribution, of the size that the run or the model has."""
    size = list(known.settings.get("image_size") or model_size(model.config) or (DEFAULT_SIZE, DEFAULT_SIZE))
    pixels = torch.randn(ROWS, num_channels(model.config), *size, generator=draw)
    return {"pixel_values": pixels.to(next(model.parameters()).dtype)}


INPUT = InputKind("image", "pixel_values", _load, _random)
