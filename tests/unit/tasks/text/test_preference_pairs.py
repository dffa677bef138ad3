"""Proves how a chosen and a rejected reply are read, however they are written, and what is wrong with a bad pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.tasks.text.preference_pairs import read_pair
from tests.prepared import Prepared, prepare

USER, GOOD, BAD = (
    {"role": "user", "content": "Hi"},
    *({"role": "assistant", "content": x} for x in ("Good day.", "No")),
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Good day.", "rejected": "No"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {
            "messages": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Good day."},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {"prompt": json.dumps([USER]), "chosen": json.dumps([GOOD]), "rejected": "No"},
    ],
)
def test_one_pair_in_many_forms(row: dict[str, Any]) -> None:
    chosen, rejected = read_pair(row)
    assert chosen.before == rejected.before == [USER]
    assert (chosen.message, rejected.message) == (GOOD, BAD)
    assert read_pair(row, "Be kind.")[0].before == [{"role": "system", "content": "Be kind."}, USER]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Hi", "chosen": "a"}, "no rejected"),
        ({"prompt": "Hi", "chosen": " ", "rejected": "b"}, "chosen is empty"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "Hi", "chosen": [USER], "rejected": "a"}, "chosen does not end with a reply of the assistant"),
        ({"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"}, "the prompt ends with a reply"),
        ({"prompt": "Ho", "chosen": [USER, GOOD], "rejected": "b"}, "chosen and rejected answer different prompts"),
    ],
)
def test_bad_pairs(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        read_pair(row)


TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _read(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Prepared:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = {"source": "llama", "init": "config", "tokenizer": "train:300", "config": TINY}
    values = {"name": "x", "task": "reward_model", "model": model, "data": {"train": str(path)}, **sections}
    return prepare({**values, "training": {"precision": "fp32"}})


ROWS = [
    {"prompt": "Hi", "chosen": "Good day.", "rejected": "No"},
    {"prompt": "Go", "chosen": "Yes, at once.", "rejected": "Never, ever."},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_loss_is_the_papers(tmp_path: Path) -> None:
    prepared = _read(tmp_path, ROWS, options={"centre": 0.1})
    batch = prepared.batch([0, 1])
    texts = prepared.artifacts.processor.batch_decode(batch.inputs["input_ids"], skip_special_tokens=True)
    assert ["Good" in texts[0], "at once" in texts[1], "No" in texts[2], "Never" in texts[3]] == [True] * 4
    outputs = prepared.task.forward(prepared.build(), batch)
    outputs.logits = torch.tensor([[2.0], [0.5], [1.0], [1.5]])
    by_hand = -torch.log(torch.sigmoid(torch.tensor([1.0, -1.0]))).sum() + 0.1 * (3.0**2 + 2.0**2)
    assert prepared.task.loss_sum(prepared.artifacts, outputs, batch).item() == pytest.approx(by_hand.item(), rel=1e-6)
    first, second = prepared.answers(outputs, batch)
    assert first.values == {"chosen_reward": 2.0, "rejected_reward": 1.0} and second.values["rejected_reward"] == 1.5


def test_bad_pairs_are_told_with_their_place(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "Hi", "chosen": "a"}, {"prompt": "Hi", "chosen": "", "rejected": "b"}]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, rows)
    assert "train.jsonl:3: no value in column rejected" in str(caught.value)
    (tmp_path / "train.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.jsonl:3: chosen is empty"):
        _read(tmp_path, [*ROWS, rows[3]])
