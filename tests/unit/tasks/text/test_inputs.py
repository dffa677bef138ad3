"""Proves what is made of texts that a tokenizer leaves nothing of."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from finetune.data.bad_rows import BadRow
from finetune.tasks.text.inputs import tokenize_texts

NOTHING = "\u200b\u200b"  # zero-width spaces, which BERT's normalizer removes


@pytest.fixture(params=[True, False], ids=["special tokens", "none"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = Tokenizer(WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "good": 3, "day": 4}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    if request.param:
        made.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize("on_long", ["truncate", "drop", "error"])
def test_a_text_without_tokens_of_its_own_is_a_bad_row(tokenizer: Any, on_long: str) -> None:
    texts = [["good day"], [NOTHING], [NOTHING, NOTHING], [NOTHING, "day"]]
    single, nothing, no_pair, half = tokenize_texts(tokenizer, texts, 64, on_long)
    for row in (nothing, no_pair):
        assert isinstance(row, BadRow)
        assert (str(row), row.kind) == ("the text holds no token", "empty")
    assert 3 in single["input_ids"] and 4 in half["input_ids"]
