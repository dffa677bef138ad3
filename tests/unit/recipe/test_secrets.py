"""Proves that secrets are masked wherever they stand when they are shown, and that ordinary values are not."""

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
        "https://xxxx@host/path",
        "git+https://xxxxxxxx@host/owner/repository.git",
        "https://host/a?b=1&token=xxx",
        "https://host/a?access_token=xxx#top",
        "https://host/a?X-Amz-Date=1&X-Amz-Signature=xxx&X-Amz-Security-Token=xxx",
        "https://host/a?sv=2024&sig=xxx",
        "https://host/a?Expires=1&Signature=xxx&Key-Pair-Id=3",
        "cannot open 'https://xxx@host/a': 403 for url https://host/b?api_key=xxx",
        "sk-proj-" + "x" * 20 + "1" + "x" * 20,
        "sk-" + "x" * 40 + "9",
        "sk-ant-api03-" + "x" * 40 + "9-xx",
        {"AWS_SECRET_ACCESS_KEY": "x", "hf_token": "x", "authToken": 3, "git_lab": 2},
        "eyJ" + "x" * 20 + ".eyJ" + "x" * 20 + "." + "x" * 20,
        "AIza" + "x" * 35,
        "Authorization: Bearer " + "x" * 20,
        "-----BEGIN RSA PRIVATE KEY-----\nxxx\n-----END RSA PRIVATE KEY-----",
        "a file that ends within -----BEGIN PRIVATE KEY-----\nxxx",
    ],
)
def test_secrets_are_masked(value: object) -> None:
    text = str(mask(value))
    assert MASK in text
    assert "x" not in text.replace("X-Amz", "").replace("Expires", "")
    assert "secret" not in text


@pytest.mark.parametrize(
    "value",
    [
        "a" * 40,  # a commit
        {"pad_token_id": 3, "tokenizer": "bert", "num_tokens": 5, "max_length": 7},
        {"unk_token": None},
        "https://host/path",
        "https://host/path?page=3&monkey=1",
        "someone/hf_model",
        "translate cs-sk-translation-corpus: ",
        "/data/sk-parallel-corpus-v1/train.csv",
        "/data/sk-parallel_corpus_of_2024/train.csv",
        {"pad_token": "<pad>", "image_token": "<i>", "tokens": "a", "token_type": "b"},
        {"api_key": "env:MY_KEY"},
        "me@example.org",
        3,
        None,
        "",
    ],
)
def test_ordinary_values_are_kept(value: object) -> None:
    assert mask(value) == value


def test_what_a_variable_holds_is_masked_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_KEY", "correct horse battery")
    monkeypatch.setenv("SOME_ACCESS_KEY", "true")
    assert mask("401 for 0123456789abcdef") == f"401 for {MASK}"
    assert mask("correct horse battery is true") == "correct horse battery is true"
