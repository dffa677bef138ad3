"""Image classification of a model that was not trained here; see tasks/from_config.py."""

from __future__ import annotations

from typing import Any

from finetune.models.processor import load_processor, num_channels, output_size
from finetune.recipe.model import ModelSection
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.from_config import Derivation, config_classes
from finetune.tasks.image_classification.card import CARD, ImageClassificationOptions


def artifacts(model: ModelSection, config: Any, notes: list[str]) -> TaskArtifacts:
    """Processor, classes, and the size of the images."""
    processor = load_processor(model, config, notes=notes)
    size = output_size(processor, config)
    assert size is not None, "load_processor promises one size"
    settings = {
        "image_size": list(size),
        "channels": num_channels(config),
        "label_smoothing": 0.0,
        "class_weights": None,
    }
    classes = config_classes(config, notes)
    return TaskArtifacts(CARD.name, ImageClassificationOptions(), processor, classes, settings)


DERIVATION = Derivation(artifacts, reads_bodies=True)
