"""Proves that secrets are masked wherever they stand, and that ordinary values are not."""

from __future__ import annotations

import pytest

from finetune.recipe.secrets import MASK, mask


@pytest.mark.parametrize(
    "value",
    [
        "hf_" + "x" * 24,
        {"api_key": "x"},
        {"a": [{"hub_token": "x"}]},
        {"WANDB_API_KEY": "x"},
        {"password": "x"},
        "https://me:secret@host/path",
        "ghp_" + "x" * 30,
    ],
)
def test_secrets_are_masked(value: object) -> None:
    text = str(mask(value))
    assert MASK in text
    assert "x" not in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "value",
    [
        "a" * 40,  # a commit
        {"pad_token_id": 3, "tokenizer": "bert", "num_tokens": 5, "max_length": 7},
        {"unk_token": None},
        "https://host/path",
        "someone/hf_model",
        3,
        None,
        "",
    ],
)
def test_ordinary_values_are_kept(value: object) -> None:
    assert mask(value) == value
