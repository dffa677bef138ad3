"""Samples and the worst examples show texts as their rows have them, not what is left of them in tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.tasks.reward_model.data import SHOWN_TURNS
from tests.prepared import Prepared, prepare

T5 = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1, "dropout_rate": 0.0}
BERT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _read(folder: Path, task: str, rows: list[dict[str, Any]], model: dict[str, Any], **options: Any) -> Prepared:
    """The rows are those of training and of validation."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {"name": "x", "task": task, "model": {"init": "config", "tokenizer": "train:300", **model}}
    data = {"train": str(path), "validation": str(path)}
    return prepare({**recipe, "data": data, "options": options, "training": {"precision": "fp32"}})


def _samples(prepared: Prepared, split: str) -> list[dict[str, str]]:
    examples = [prepared.datasets[split][index] for index in range(len(prepared.datasets[split]))]
    found: list[dict[str, str]] = prepared.task.sample(prepared.artifacts, prepared.build(), examples, synced=False)
    return found


def test_sources_and_targets_are_whole_and_without_the_prefix(tmp_path: Path) -> None:
    rows = [
        {"source": "Ein  Hund,\nder im Garten schläft und träumt.", "target": "A dog that sleeps in the garden."},
        {"source": "zwei", "target": "two"},
    ]
    options = {"prefix": "to English: ", "max_source_length": 8, "max_target_length": 4, "on_long": "truncate"}
    prepared = _read(tmp_path, "seq2seq", rows, {"source": "t5", "config": T5}, **options)
    shown = _samples(prepared, "validation")
    assert [(row["input"], row["expected"]) for row in shown] == [(row["source"], row["target"]) for row in rows]
    trained = _samples(prepared, "train")  # whose texts are not kept
    assert trained[0]["input"].startswith("to Eng") and "träumt" not in trained[0]["input"]
    batch = prepared.batch([0, 1], "validation")
    with torch.no_grad():
        scores = prepared.task.score(prepared.artifacts, prepared.task.forward(prepared.build().eval(), batch), batch)
    assert [score.shown["target"] for score in scores] == [row["target"] for row in rows]


def test_replies_of_a_reward_model_stand_beside_their_prompt(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    rows = [
        {"prompt": "Name a Fruit,  please.", "chosen": "An Apple!", "rejected": "Stone?"},
        {"messages": [*talk, {"role": "user", "content": "Bye"}], "chosen": "Farewell.", "rejected": "No."},
        {"messages": [*talk * 6, {"role": "user", "content": "Bye"}], "chosen": "So long.", "rejected": "No."},
    ]
    prepared = _read(tmp_path, "reward_model", rows, {"source": "bert", "config": BERT})
    first, second, third = _samples(prepared, "validation")
    assert (first["input"], first["chosen"], first["rejected"]) == ("Name a Fruit,  please.", "An Apple!", "Stone?")
    assert first["expected"] == "chosen" and first["predicted"] in ("chosen", "rejected")
    assert json.loads(second["turns"]) == [["user", "Hi!"], ["assistant", "Hello."], ["user", "Bye"]]
    turns = json.loads(third["turns"])
    assert turns[0] == ["earlier", "5 turns are not shown"] and len(turns) == 1 + SHOWN_TURNS
    trained = _samples(prepared, "train")
    assert "<|im_start|>user" in trained[0]["chosen"] and trained[0]["turns"] == "", "as the model reads it"
