"""Proves how sources and targets become tokens, what the loss counts, and that generation lines up with its examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.errors import UserError
from tests.prepared import Prepared, prepare

T5 = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1, "dropout_rate": 0.0}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip
MARIAN = {**BART, "forced_eos_token_id": None}
ROWS = [{"source": "ein Hund", "target": "a dog"}, {"source": "zwei Katzen schlafen", "target": "two cats sleep"}]


def _read(folder: Path, rows: list[dict[str, Any]], family: str = "t5", **options: Any) -> Prepared:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {"t5": T5, "bart": BART, "marian": MARIAN}[family]
    model = {"source": family, "init": "config", "tokenizer": "train:300", "config": config}
    return prepare(
        {
            "name": "x",
            "task": "seq2seq",
            "model": model,
            "data": {"train": str(path)},
            "options": options,
            "training": {"precision": "fp32"},
        }
    )


def test_prefix_end_marks_and_padding(tmp_path: Path) -> None:
    prepared = _read(tmp_path, ROWS, prefix="to English: ")
    batch = prepared.batch([0, 1])
    assert (
        prepared.artifacts.processor.decode(prepared.datasets["train"][0]["input_ids"])
        == "to English: ein Hund<|endoftext|>"
    )
    labels = batch.targets["labels"]
    assert prepared.artifacts.processor.decode(labels[0][labels[0] >= 0]) == "a dog<|endoftext|>"
    assert prepared.task.weight(batch) == int((labels != -100).sum()) == batch.targets["units"]
    assert labels.shape[1] == max(len(prepared.datasets["train"][row]["labels"]) for row in (0, 1))


@pytest.mark.parametrize("family", ["t5", "bart", "marian"])
def test_the_loss_is_the_models_own_and_generation_lines_up(tmp_path: Path, family: str) -> None:
    prepared = _read(tmp_path, ROWS, family, max_target_length=12)
    model = prepared.build().eval()
    batch = prepared.batch([1, 0])
    own = model(**batch.inputs, labels=batch.targets["labels"]).loss
    loss = prepared.loss_sum(model, batch) / prepared.task.weight(batch)
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)
    with torch.no_grad():
        written = prepared.task.generate(prepared.artifacts, model, batch, synced=False)
    assert [row["reference_text"] for row in written] == ["two cats sleep", "a dog"]
    assert all(isinstance(row["text"], str) for row in written)


def test_long_texts_keep_their_end_mark_or_are_reported(tmp_path: Path) -> None:
    rows = [*ROWS, {"source": "lang " * 40, "target": "long " * 40}]
    prepared = _read(tmp_path, rows, max_source_length=10, max_target_length=6)
    example = prepared.datasets["train"][2]
    assert len(example["input_ids"]) == 10 and len(example["labels"]) == 6
    assert example["input_ids"][-1] == example["labels"][-1] == 1  # the end of the text
    cut = [note for note in prepared.facts.notes if "only the first" in note]
    assert any("6 tokens of the expected text" in note and "train.jsonl:3" in note for note in cut)
    assert any("10 tokens of the text" in note and "train.jsonl:3" in note for note in cut)
    dropped = _read(tmp_path, rows, max_target_length=20, on_long="drop")
    assert len(dropped.datasets["train"]) == 2
    assert "train: 1 longer than 256 tokens of the source or 20 of the target left out" in dropped.facts.notes
    with pytest.raises(UserError, match=r"train\.jsonl:3: target: \d+ tokens, more than options.max_target_length 20"):
        _read(tmp_path, rows, max_target_length=20, on_long="error")


def test_texts_that_are_cut_are_counted_with_their_places(tmp_path: Path) -> None:
    """One side alone, too: the limits of both together are not what cuts."""
    rows = [*ROWS, {"source": "kurz", "target": "long " * 40}, {"source": "lang " * 40, "target": "short"}]
    prepared = _read(tmp_path, rows, max_source_length=30, max_target_length=20)
    place = tmp_path / "train.jsonl"
    assert prepared.facts.notes[:2] == [
        "train: 1 row: only the first 20 tokens of the expected text were read "
        f"(options.max_target_length) ({place}:3)",
        f"train: 1 row: only the first 30 tokens of the text were read (options.max_source_length) ({place}:4)",
    ]
    assert "1 row: only the first 20 tokens" in prepared.facts.values["train"]


def test_what_is_generated_is_compared_with_the_whole_target(tmp_path: Path) -> None:
    """A target that is cut for the loss, or that the tokenizer does not give back, would make figures too good."""
    rows = [{"source": "ein Hund", "target": "a dog " * 100}, {"source": "zwei", "target": "two  cats"}]
    prepared = _read(tmp_path, rows, max_target_length=4)
    examples = prepared.task.encode(prepared.artifacts, rows, with_targets=True)
    batch = prepared.task.collate(prepared.artifacts, [{**one, "id": id} for id, one in enumerate(examples)])
    with torch.no_grad():
        written = prepared.task.generate(prepared.artifacts, prepared.build().eval(), batch, synced=False)
    assert [row["reference_text"] for row in written] == [("a dog " * 100).strip(), "two  cats"]


def test_an_empty_target_is_reported_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl:3: target is empty"):
        _read(tmp_path, [*ROWS, {"source": "a", "target": " "}])
