"""Proves that classes of models are known in one place, by the names that transformers and peft have for them."""

from __future__ import annotations

import transformers

from finetune.models.auto_classes import AUTO_CLASSES, class_of_adapter, task_type_of
from finetune.tasks import CARDS


def test_entries_exist_in_the_libraries() -> None:
    import peft

    kinds = {one.task_type for one in AUTO_CLASSES.values()} - {""}
    assert len(AUTO_CLASSES) == 6 and len(kinds) == 4
    assert all(
        hasattr(transformers, name) and hasattr(transformers, one.processor) for name, one in AUTO_CLASSES.items()
    )
    assert kinds <= {kind.value for kind in peft.TaskType}
    assert all(hasattr(peft, one.peft) for one in AUTO_CLASSES.values() if one.peft)
    assert {card.model.auto_class for card in CARDS.values()} <= AUTO_CLASSES.keys()


def test_an_adapter_says_what_it_was_trained_for() -> None:
    assert [class_of_adapter({"task_type": one}) for one in ("SEQ_CLS", "CAUSAL_LM", None, "", ["SEQ_CLS"], "X")] == [
        "AutoModelForSequenceClassification",
        "AutoModelForCausalLM",
        *[""] * 4,
    ]
    assert class_of_adapter({}) == ""
    assert task_type_of("AutoModelForTokenClassification") == "TOKEN_CLS"
    assert task_type_of("AutoModelForImageClassification") is task_type_of("AutoModel") is None
