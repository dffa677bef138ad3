"""Every word of a long text is tagged once, where most of what is around it is seen, and keeps its place in the text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.inference.answering import PIECE, Answered
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.spans import span_starts
from finetune.inference.pieces.splitter import make_splitter
from finetune.inference.pieces.words import choose_blocks
from finetune.models.losses import IGNORE
from finetune.tasks.batch import RecordOptions
from tests.unit.inference.pieces.conftest import answer_with, split_and_load

BERT = {
    "source": "bert",
    "init": "config",
    "tokenizer": "train:300",
    "config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
}
WORDS = ["Ann", "left", "New", "York", ".", "Bob", "Ray", "sees", "Oslo", "Lima", "unbelievable", "Rome"]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(2, 30), st.data())
def test_a_word_goes_where_most_context_is_on_its_shorter_side(sizes: list[int], room: int, data: Any) -> None:
    """Held against a search of all blocks. sizes: tokens of each word; 0: the tokenizer drops it."""
    if not any(sizes):
        return
    ends = np.cumsum(sizes)
    firsts = [int(end - size) if size else -1 for end, size in zip(ends, sizes, strict=True)]
    length = int(ends[-1])
    begins = span_starts(length, room, data.draw(st.integers(0, room - 1)))
    chosen = choose_blocks(firsts, length, begins, room).tolist()
    assert len(chosen) == len(sizes) and chosen == sorted(chosen), "words of a block are neighbors"
    known = [(first, owner) for first, owner in zip(firsts, chosen, strict=True) if first >= 0]
    behind = [first for first, _ in known[1:]] + [length]
    for (first, owner), end in zip(known, behind, strict=True):
        context = {
            block: min(first - begin, begin + room - end)
            for block, begin in enumerate(begins)
            if begin <= first < begin + room
        }
        assert context[owner] == max(context.values())
        assert owner == min(block for block, one in context.items() if one == context[owner])


def words_of(length: int, seed: int) -> list[str]:
    return np.random.default_rng(seed).choice(WORDS, length).tolist()


def tag_tokens(prepared: Any) -> Any:
    """A model whose tag of a token depends on the token alone: blocks and the whole text must agree."""
    torch.manual_seed(0)
    table = torch.randn(len(prepared.artifacts.processor), len(prepared.artifacts.labels))
    return lambda batch: SimpleNamespace(logits=table[batch.inputs["input_ids"]])


@pytest.mark.parametrize("label_on", ["first", "all"])
@pytest.mark.parametrize("length", [40, 61, 200])
def test_tags_of_blocks_are_those_of_the_whole_text(prepared_task: Any, label_on: str, length: int) -> None:
    prepared = prepared_task("token_classification", BERT, max_length=32, label_on=label_on)
    whole = prepared_task("token_classification", BERT, max_length=4096, label_on=label_on)
    names = prepared.artifacts.labels
    row = {"tokens": words_of(length, length), "tags": [names[i % len(names)] for i in range(length)]}
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=24, stride=15))
    (examples,) = split_and_load(splitter, [row], with_targets=True)
    assert len(examples) > 2 and all(len(one["input_ids"]) == 24 for one in examples)
    rng, model = np.random.default_rng(0), tag_tokens(prepared)
    parts = answer_with(prepared, examples, model)
    merged = splitter.merge(0, [parts[i] for i in rng.permutation(len(parts))])
    (expected,) = whole.task.encode(whole.artifacts, [row], with_targets=True)
    (usual,) = answer_with(whole, [{**expected, "id": 0, PIECE: {}}], model)
    assert isinstance(merged, Answered) and isinstance(usual.outcome, Answered)
    assert merged.answer.values == usual.outcome.answer.values
    assert merged.score is not None and usual.outcome.score is not None
    assert merged.score.reference == usual.outcome.score.reference, "tags of all pieces, not of the first"
    assert merged.score.loss == pytest.approx(usual.outcome.score.loss, rel=1e-5)
    assert merged.score.weight == usual.outcome.score.weight


def test_only_the_words_of_a_block_are_labeled(prepared_task: Any) -> None:
    prepared = prepared_task("token_classification", BERT, max_length=32, label_on="all")
    names = prepared.artifacts.labels
    row = {"tokens": words_of(80, 3), "tags": [names[0]] * 80}
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=24, stride=9))
    (examples,) = split_and_load(splitter, [row], with_targets=True)
    (whole,) = prepared.task.encode(splitter.unlimited, [row], with_targets=True)  # type: ignore[attr-defined]
    labeled = sum(label != IGNORE for example in examples for label in example["labels"])
    assert labeled == sum(label != IGNORE for label in whole["labels"])


def test_plain_text_keeps_its_offsets(prepared_task: Any) -> None:
    prepared = prepared_task("token_classification", BERT, max_length=32)
    text = "  ".join(["Ann left New York.", "Bob sees (Oslo), Lima;"] * 12)
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=24, stride=9))
    (examples,) = split_and_load(splitter, [{"text": text}])
    assert len(examples) > 2
    merged = splitter.merge(0, answer_with(prepared, examples, tag_tokens(prepared))[::-1])
    assert isinstance(merged, Answered)
    record = prepared.task.record(prepared.artifacts, merged.answer, RecordOptions())
    offsets = merged.answer.values["offsets"]
    assert [text[start:end] for start, end in offsets] == record["words"] and None not in record["scores"]
    assert all(text[one["start"] : one["end"]] == one["text"] for one in record["entities"]) and record["entities"]
    assert "".join(record["words"]) == text.replace(" ", "")


def test_a_word_longer_than_a_block_is_tagged_once(prepared_task: Any) -> None:
    prepared = prepared_task("token_classification", BERT, max_length=16)
    row = {"tokens": ["Ann", "x" * 90, "left", "\u200b", "Rome"]}
    splitter = make_splitter(prepared.task, prepared.artifacts, PieceOptions(block=12, stride=2))
    (examples,) = split_and_load(splitter, [row])
    assert [index for one in examples for index in [one[PIECE]["index"]]] == list(range(len(examples)))
    merged = splitter.merge(0, answer_with(prepared, examples, tag_tokens(prepared)))
    assert isinstance(merged, Answered) and len(merged.answer.values["tags"]) == 5
