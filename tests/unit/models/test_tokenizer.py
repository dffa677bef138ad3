"""Tests that a tokenizer trained on the data is deterministic, and that every tokenizer has padding and end tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import UserError
from finetune.models.tokenizer import fingerprint, fresh_settings, load_tokenizer, new_token_ids, set_padding
from finetune.recipe.model import ModelSection

TEXTS = ["the quick brown fox", "jumps over the lazy dog", "naïve café, 你好 🙂"] * 5


def _model(**values: Any) -> ModelSection:
    return ModelSection(source="llama", init="config", **values)


def test_training_is_deterministic_and_loses_no_character() -> None:
    one = load_tokenizer(_model(tokenizer="train:320"), lambda: iter(TEXTS))
    other = load_tokenizer(_model(tokenizer="train:320"), lambda: iter(TEXTS))
    assert fingerprint(one) == fingerprint(other)
    for text in (*TEXTS, "\ttabs  and\nlines ", "unseen: ß ∑"):
        assert one.decode(one(text)["input_ids"]) == text
    marks = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [one.convert_tokens_to_ids(mark) for mark in marks] == [0, 1, 2, 3]
    assert (one.pad_token, one.eos_token) == (marks[0], marks[1])


def test_new_tokens_are_never_split_and_known_ones_keep_their_ids() -> None:
    plain = load_tokenizer(_model(tokenizer="train:320"), lambda: iter(TEXTS))
    model = _model(tokenizer="train:320", new_tokens=["<|tool|>", "quick", "<|im_end|>"])
    grown = load_tokenizer(model, lambda: iter(TEXTS))
    new = range(len(plain), len(grown))
    assert set(new) == {grown.convert_tokens_to_ids("<|tool|>"), grown.convert_tokens_to_ids("quick")}
    assert grown.convert_tokens_to_ids("<|im_end|>") == plain.convert_tokens_to_ids("<|im_end|>")
    assert grown("a<|tool|>b")["input_ids"].count(grown.convert_tokens_to_ids("<|tool|>")) == 1
    assert new_token_ids(model, grown, new) == [plain.convert_tokens_to_ids("<|im_end|>"), *new]
    assert fingerprint(grown) != fingerprint(plain)


def test_the_cache_gives_the_same_tokenizer_by_content(tmp_path: Path) -> None:
    written: list[str] = []

    def publish(kind: str, key: str, write: Callable[[Path], Any]) -> Path:
        folder = tmp_path / kind / key
        if not folder.is_dir():
            folder.mkdir(parents=True)
            write(folder)
            written.append(key)
        return folder

    def texts(more: list[str]) -> Callable[[], Iterator[str]]:
        return lambda: iter([*TEXTS, *more])

    model = _model(tokenizer="train:320")
    one = load_tokenizer(model, texts([]), publish=publish)
    other = load_tokenizer(model, texts([]), publish=publish)
    assert fingerprint(one) == fingerprint(other) and len(written) == 1
    load_tokenizer(model, texts(["one text more"]), publish=publish)
    load_tokenizer(_model(tokenizer="train:321"), texts([]), publish=publish)
    assert len(set(written)) == 3


@pytest.mark.parametrize("source", ["train:", "train:many", "train:100"])
def test_a_wrong_size_is_reported(source: str) -> None:
    with pytest.raises(UserError, match="train:<vocabulary size>"):
        load_tokenizer(_model(tokenizer=source), lambda: iter(TEXTS))


def test_a_model_type_or_folder_without_a_tokenizer_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(_model())
    with pytest.raises(UserError, match="contains no tokenizer"):
        load_tokenizer(ModelSection(source=str(tmp_path)))


def test_padding_with_the_end_of_text_token_freezes_no_embedding(tmp_path: Path) -> None:
    trained = load_tokenizer(_model(tokenizer="train:320"), lambda: iter(TEXTS))
    trained.pad_token = None
    trained.save_pretrained(tmp_path)
    model = _model(tokenizer=str(tmp_path))
    tokenizer = load_tokenizer(model)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    assert "pad_token_id" not in fresh_settings(model, tokenizer)
    told = type("Model", (), {"config": type("Config", (), {"pad_token_id": None})()})()
    set_padding(told, tokenizer)
    assert told.config.pad_token_id is None
    set_padding(told, tokenizer, always=True)
    assert told.config.pad_token_id == 1
    assert fresh_settings(ModelSection(source="x"), tokenizer) == {}
