"""A tiny BERT with three named classes on disk, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60}


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    names = ["red", "green", "blue"]
    config = AutoConfig.for_model(
        "bert", **TINY, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)}
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder
