"""Models larger than one device: layers of which some wait on the disk say what the whole model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

import finetune
from finetune.app.asked_model import open_model
from finetune.errors import UserError
from finetune.models.placement import Placement
from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection

pytestmark = pytest.mark.usefixtures("own_cache")

torch.set_num_threads(1)
TEXTS = ["a fine film", "cold and long and cold", "warm"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = load_tokenizer(ModelSection(source="gpt2", init="config", tokenizer="train:300"), lambda: iter(TEXTS))
    return PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, pad_token="<|pad|>", eos_token="<|endoftext|>"
    )


@pytest.fixture
def classifier(tmp_path: Path, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=3,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "model", max_shard_size="40KB")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_layers_on_the_disk_say_what_the_whole_model_says(classifier: Path, tmp_path: Path) -> None:
    whole = finetune.load(classifier)
    size = sum(weight.numel() * weight.element_size() for weight in whole.asked.module.parameters())
    spread = finetune.load(classifier, memory={"cpu": size // 2}, offload=tmp_path / "offload")
    waiting = [name for name, weight in spread.asked.module.named_parameters() if weight.device.type == "meta"]
    assert 0 < len(waiting) < len(list(spread.asked.module.parameters()))
    assert "wait on the disk" in spread.notes[-1]
    assert spread.predict(TEXTS) == whole.predict(TEXTS)
    assert spread.asked.device == torch.device("cpu") and spread.asked.digest == whole.asked.digest


def test_a_language_model_with_layers_on_the_disk_writes_the_same(tmp_path: Path, tokenizer: Any) -> None:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=4, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    whole = finetune.load(tmp_path / "model").predict(TEXTS, new_tokens=8)
    spread = finetune.load(tmp_path / "model", memory={"cpu": 150_000}, offload=tmp_path / "offload")
    assert any(weight.device.type == "meta" for weight in spread.asked.module.parameters())
    assert spread.predict(TEXTS, new_tokens=8) == whole


def test_what_cannot_be_spread_is_refused(classifier: Path, tmp_path: Path) -> None:
    from tests.contract.examples import EXAMPLES
    from tests.prepared import prepare
    from tests.stored_runs import store_run

    example = next(example for example in EXAMPLES if example.task == "text_classification")
    prepared = prepare(example.recipe(tmp_path))
    run = store_run(prepared, prepared.build(), tmp_path)
    with pytest.raises(UserError, match="weights out of a checkpoint") as caught:
        finetune.load(run, memory={"cpu": 10_000})
    assert "model/ of the run" in caught.value.remedy
    with pytest.raises(UserError, match="3 ranks cannot share the layers equally"):
        open_model(classifier, placement=Placement(slices=3))
