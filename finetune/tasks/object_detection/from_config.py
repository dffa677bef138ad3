"""Object detection of a model that was not trained here; see tasks/from_config.py."""

from __future__ import annotations

from typing import Any

from finetune.models.processor import load_processor, output_size
from finetune.recipe.model import ModelSection
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.from_config import Derivation, config_classes
from finetune.tasks.object_detection.card import CARD, ObjectDetectionOptions
from finetune.tasks.object_detection.task import PROCESSOR, PROCESSORS


def artifacts(model: ModelSection, config: Any, notes: list[str]) -> TaskArtifacts:
    """Processor, classes, and the one size in which images are seen."""
    processor = load_processor(model, config, kind=PROCESSORS.get(config.model_type, PROCESSOR), notes=notes)
    size = output_size(processor, config)
    assert size is not None, "load_processor promises one size"
    classes = config_classes(config, notes)
    return TaskArtifacts(CARD.name, ObjectDetectionOptions(), processor, classes, {"image_size": list(size)})


DERIVATION = Derivation(artifacts)
