"""Proves what generated replies are compared with, where rows are cut, and that replies which end early are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.prepare.encode import EncodedExamples
from finetune.inference.generation.answerer import expected_tokens
from tests.prepared import Prepared, prepare

LLAMA = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
REPLY = "one two three four five six seven eight nine ten"
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "Tell me all of it. " * 5},
    {"role": "assistant", "content": REPLY},
]


def _read(folder: Path, row: dict[str, Any], **options: Any) -> Prepared:
    path = folder / "rows.jsonl"
    path.write_text(
        json.dumps(row) + "\n" + json.dumps({"instruction": "Hi", "output": "Yes"}) + "\n", encoding="utf-8"
    )
    return prepare(
        {
            "name": "x",
            "task": "causal_lm",
            "model": {"source": "llama", "init": "config", "tokenizer": "train:300", "config": LLAMA},
            "data": {"train": str(path), "validation": str(path), "packing": "none"},
            "options": {"reply_length": 4, **options},
            "training": {"precision": "fp32"},
        }
    )


@pytest.mark.parametrize("train_on", ["reply", "all"])
def test_what_is_generated_is_compared_with_the_whole_reply_of_a_row_that_is_cut(tmp_path: Path, train_on: str) -> None:
    row = {"instruction": "Count.", "output": REPLY}
    whole = _read(tmp_path, row, train_on=train_on).datasets["validation"][0]
    limit = int(whole["reply_start"]) + 3
    prepared = _read(tmp_path, row, train_on=train_on, max_length=limit)
    batch, model = prepared.batch([0, 1], "validation"), prepared.build().eval()
    assert batch.inputs["input_ids"].shape[1] == limit  # the loss is that of the beginning
    with torch.no_grad():
        written = prepared.task.generate(prepared.artifacts, model, batch, synced=False)
    assert [one["reference_text"] for one in written] == [REPLY, "Yes"]
    examples = [prepared.datasets["validation"][0]]
    (sample,) = prepared.task.sample(prepared.artifacts, model, examples, synced=False)
    assert sample["expected"] == REPLY


@pytest.mark.parametrize("train_on", ["reply", "all"])
def test_a_cut_after_a_reply_leaves_the_next_question_out_of_what_is_expected(tmp_path: Path, train_on: str) -> None:
    whole = _read(tmp_path, {"messages": TALK}).datasets["validation"][0]
    limit = int(whole["reply_start"]) - 2  # in the second question
    prepared = _read(tmp_path, {"messages": TALK}, max_length=limit, train_on=train_on)
    example = prepared.datasets["validation"][0]
    assert len(example["input_ids"]) == limit
    assert example["reply_start"] == whole["spans"][0]  # what stands before the first reply is given
    assert list(example["spans"]) == ([1, limit] if train_on == "all" else list(whole["spans"][:2]))
    with torch.no_grad():
        (written,) = prepared.task.generate(
            prepared.artifacts, prepared.build().eval(), prepared.batch([0], "validation"), synced=False
        )
    assert written["reference_text"] == "Good day."


def test_a_conversation_learned_whole_and_cut_before_its_replies_is_continued_from_its_opening(tmp_path: Path) -> None:
    row = {"messages": [TALK[2], TALK[3]]}
    example = _read(tmp_path, row, max_length=40, train_on="all").datasets["validation"][0]
    assert len(example["input_ids"]) == 40 and example["reply_start"] == 20
    assert "reference" not in example


def test_a_text_that_is_cut_keeps_its_opening_and_is_not_stored_twice(tmp_path: Path) -> None:
    whole = _read(tmp_path, {"text": REPLY * 9}).datasets["validation"][0]
    cut = _read(tmp_path, {"text": REPLY * 9}, max_length=60).datasets["validation"][0]
    assert len(cut["input_ids"]) == 60 and "reference" not in cut
    assert cut["reply_start"] == whole["reply_start"] > 1


def test_expected_replies_longer_than_generated_ones_may_be_are_counted(tmp_path: Path) -> None:
    row = {"instruction": "Count.", "output": REPLY}
    notes = [note for note in _read(tmp_path, row).facts.notes if "reply_length" in note]
    assert len(notes) == 1
    assert notes[0].startswith("validation: 1 row: the expected reply has more than options.reply_length 4 tokens")
    assert notes[0].endswith("rows.jsonl:1)")
    assert not [note for note in _read(tmp_path, row, reply_length=200).facts.notes if "reply_length" in note]


def test_replies_are_counted_once_and_not_unpacked_where_the_answer_is_kept(tmp_path: Path, monkeypatch) -> None:
    row = {"instruction": "Count.", "output": REPLY}
    first = _read(tmp_path, row).facts.notes
    monkeypatch.setattr(EncodedExamples, "__getitem__", None)
    again = _read(tmp_path, row).facts.notes
    assert again == first and any("reply_length 4" in note for note in again)


def test_turns_behind_the_last_reply_are_not_expected_of_it(tmp_path: Path) -> None:
    talk = [*TALK, {"role": "user", "content": "Thank you, and goodbye."}]
    prepared = _read(tmp_path, {"messages": talk}, train_on="all")
    example = prepared.datasets["validation"][0]
    whole = prepared.artifacts.processor.decode(example["input_ids"])
    assert "goodbye" in whole and list(example["spans"]) == [1, len(example["input_ids"])]
    batch, model = prepared.batch([0, 1], "validation"), prepared.build().eval()
    with torch.no_grad():
        written = prepared.task.generate(prepared.artifacts, model, batch, synced=False)
    assert [one["reference_text"] for one in written] == [REPLY, "Yes"]
    (sample,) = prepared.task.sample(prepared.artifacts, model, [example], synced=False)
    assert sample["expected"] == REPLY and sample["input"] + REPLY in whole
    scored = prepared.artifacts.processor.decode(expected_tokens(example), skip_special_tokens=True)
    assert scored.strip() == REPLY  # by `predict`, too
