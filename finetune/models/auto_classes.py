"""transformers' classes of models, and what hubs and peft call the same: one entry each. Imports nothing.

A class without an entry can be trained and exported; then a model card loads it by the most general classes, and an adapter
is saved without a task type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AutoClass:
    """processor: transformers' class of its tokenizer or image processor. pipeline: the hub's tag, "" for none.

    task_type: peft's name of what an adapter is trained for; "" for none. peft: the class of peft that loads an adapter
    together with its base; "" where the base has no head for the task, which comes with the adapter.
    """

    processor: str = "AutoProcessor"
    pipeline: str = ""
    task_type: str = ""
    peft: str = ""


AUTO_CLASSES: Mapping[str, AutoClass] = {
    "AutoModelForSequenceClassification": AutoClass("AutoTokenizer", "text-classification", "SEQ_CLS"),
    "AutoModelForTokenClassification": AutoClass("AutoTokenizer", "token-classification", "TOKEN_CLS"),
    "AutoModelForCausalLM": AutoClass("AutoTokenizer", "text-generation", "CAUSAL_LM", "AutoPeftModelForCausalLM"),
    "AutoModelForSeq2SeqLM": AutoClass("AutoTokenizer", "", "SEQ_2_SEQ_LM", "AutoPeftModelForSeq2SeqLM"),
    "AutoModelForImageClassification": AutoClass("AutoImageProcessor", "image-classification"),
    "AutoModelForObjectDetection": AutoClass("AutoImageProcessor", "object-detection"),
}


def task_type_of(auto_class: str) -> str | None:
    """peft's name of what an adapter of such a model is trained for; None if it has none."""
    return AUTO_CLASSES.get(auto_class, AutoClass()).task_type or None


def class_of_adapter(settings: Mapping[str, Any]) -> str:
    """The class of the model that an adapter was trained for, by its adapter_config.json; "" if that does not say."""
    task_type = settings.get("task_type")
    return next((name for name, one in AUTO_CLASSES.items() if task_type and one.task_type == task_type), "")
