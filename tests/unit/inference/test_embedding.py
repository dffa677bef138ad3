"""Proves that embeddings are the means of last hidden states, whatever the batch, its padding and the adapter."""

from __future__ import annotations

import json
import pickle
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.data.sources.source_stream import open_stream
from finetune.errors import UserError
from finetune.inference.embedding import as_embedding, check_encoder
from finetune.recipe.data import SourceSection
from finetune.tasks import CARDS
from finetune.tasks.batch import RecordOptions
from tests.prepared import Prepared, prepare

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS = ["a fine film", "cold and long, the worst of the year", "x"]
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def texts(folder: Path, **sections: Any) -> Prepared:
    path = folder / "train.jsonl"
    rows = [{"text": text, "label": str(index % 2)} for index, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = {"source": "bert", "init": "config", "tokenizer": "train:262", "config": TINY}
    values = {"name": "x", "task": "text_classification", "model": model, "data": {"train": str(path)}}
    return prepare({**values, "training": {"precision": "fp32"}, **sections})


def embeddings(prepared: Prepared, model: Any, rows: list[dict[str, Any]], *, normalize: bool = False) -> torch.Tensor:
    task = pickle.loads(pickle.dumps(as_embedding(prepared.task, normalize=normalize)))
    encoded = task.encode(prepared.artifacts, rows, with_targets=True)
    batch = task.collate(prepared.artifacts, [{"id": index, **one} for index, one in enumerate(encoded)])
    assert batch.targets == {}
    with torch.no_grad():
        answers = task.decode(prepared.artifacts, task.forward(model, batch), batch)
    fields = task.record_fields(prepared.artifacts, RecordOptions())
    records = [task.record(prepared.artifacts, answer, RecordOptions()) for answer in answers]
    assert fields == {"embedding": ["number"]} and [list(record) for record in records] == [["embedding"]] * len(rows)
    return torch.tensor([record["embedding"] for record in records])


@pytest.mark.parametrize("packing", ["none", "padding_free"])
def test_the_mean_over_the_tokens_of_each_text(tmp_path: Path, packing: str) -> None:
    data = {"train": str(tmp_path / "train.jsonl"), "packing": packing}
    prepared = texts(tmp_path, data=data)
    model: Any = prepared.build().eval()
    rows: list[dict[str, Any]] = [{"text": text, "label": "0"} for text in TEXTS]
    found = embeddings(prepared, model, rows)
    for row, text in zip(found, TEXTS, strict=True):
        ids = torch.tensor([prepared.artifacts.processor(text)["input_ids"]])
        with torch.no_grad():
            states = model.bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        assert torch.allclose(row, states[0].mean(dim=0), atol=1e-5)
    unit = embeddings(prepared, model, rows, normalize=True)
    assert torch.allclose(unit.norm(dim=1), torch.ones(3), atol=1e-6)
    assert torch.allclose(unit, found / found.norm(dim=1, keepdim=True), atol=1e-5)


def test_an_adapter_is_part_of_the_encoder(tmp_path: Path) -> None:
    prepared = texts(tmp_path, adapter={"rank": 2})
    model: Any = prepared.build().eval()
    before = embeddings(prepared, model, [{"text": TEXTS[0]}])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert not torch.allclose(embeddings(prepared, model, [{"text": TEXTS[0]}]), before, atol=1e-3)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_mean_over_an_image(kind: str) -> None:
    import numpy as np

    config = {
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
        "vit": {**TINY, "patch_size": 4, "image_size": 8},
    }[kind]
    values = {
        "name": "x",
        "task": "image_classification",
        "model": {"source": kind, "init": "config", "config": config},
        "data": {"train": [{"source": "builtin:digits", "split": "validation", "limit": 8}]},
        "options": {"image_size": 32 if kind == "resnet" else 8},
        "training": {"precision": "fp32"},
    }
    prepared = prepare(values)
    model: Any = prepared.build().eval()
    source = SourceSection(source="builtin:digits", split="validation")
    stream: Any = open_stream([source], prepared.task.card)
    rows = [{"image": row.row["image"]} for row in islice(stream.rows(), 3)]
    found = embeddings(prepared, model, rows)
    encoded = prepared.task.encode(prepared.artifacts, rows, with_targets=False)
    pixels = torch.from_numpy(np.stack([one["pixel_values"] for one in encoded]))  # type: ignore[index]
    with torch.no_grad():
        states = model.base_model(pixel_values=pixels).last_hidden_state
    expected = states.mean(dim=(2, 3)) if kind == "resnet" else states.mean(dim=1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "config", "reason"),
    [
        ("text_classification", {"model_type": "llama"}, "a decoder"),
        ("causal_lm", {"model_type": "gpt2"}, "a decoder"),
        ("seq2seq", {"model_type": "t5", "is_encoder_decoder": True}, "the task seq2seq"),
        ("object_detection", {"model_type": "yolos"}, "the task object_detection"),
    ],
)
def test_what_is_no_encoder_is_refused(task: str, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_encoder(CARDS[task], SimpleNamespace(**config), "model")


def test_encoders() -> None:
    for task, kind in [
        ("text_classification", "bert"),
        ("token_classification", "modernbert"),
        ("reward_model", "roberta"),
    ]:
        check_encoder(CARDS[task], SimpleNamespace(model_type=kind, is_encoder_decoder=False), "model")
    check_encoder(CARDS["image_classification"], SimpleNamespace(model_type="vit"), "model")
    check_encoder(CARDS["text_classification"], SimpleNamespace(model_type="llama", is_causal=False), "model")
