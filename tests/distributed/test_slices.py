"""Replicas of two ranks that hold slices of a model answer as the whole model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.distributed import mixin

from finetune.app.asked_model import load_found
from finetune.app.model_sources import find_model
from finetune.distributed.session import Session
from finetune.errors import TrainingFailed
from finetune.inference.answering import Answered, Chunk
from finetune.models.placement import Placement
from tests.ranks import RankError

PROMPTS = ["a fine film", "cold and long", "warm", "the best of the year", "I slept"]


def write_model(folder: Path, *, replies: bool) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from finetune.models.tokenizer import load_tokenizer
    from finetune.recipe.model import ModelSection

    tokenizer = load_tokenizer(ModelSection(source="x", init="config", tokenizer="train:300"), lambda: iter(PROMPTS))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        num_labels=3,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind: Any = LlamaForCausalLM if replies else LlamaForSequenceClassification
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chunks_of(task: Any, artifacts: Any) -> list[Chunk]:
    role = "prompt" if hasattr(task, "generate") else "text"
    encoded = task.encode(artifacts, [{role: prompt} for prompt in PROMPTS], with_targets=False)
    examples = [{"id": index, **one} for index, one in enumerate(encoded)]
    return [Chunk((0, 0), examples[:2]), Chunk((0, 1), examples[2:])]


def answers(folder: str, ranks: int, new_tokens: int) -> dict[int, Any]:
    """ranks: that hold the model together. The chunks of this rank's replica, by row."""
    session = Session.open(None, precision="fp32", cpu=True, replica_size=ranks)
    found = find_model(folder)
    placement = Placement(slices=ranks) if ranks > 1 else None
    asked = load_found(found, placement=placement, session=session)
    held = sum(weight.to_local().numel() if hasattr(weight, "to_local") else weight.numel()
               for weight in asked.module.parameters())  # fmt: skip
    own = chunks_of(asked.task, asked.artifacts)[session.replica :: session.replicas]
    answerer = asked.answerer(**({"new_tokens": new_tokens} if asked.writes_text else {}))
    outcomes = {}
    for chunk, found_outcomes in answerer.run(own):
        for example, outcome in zip(chunk.examples, found_outcomes, strict=True):
            assert isinstance(outcome, Answered), outcome
            outcomes[example["id"]] = dict(outcome.answer.values)
    return {"outcomes": outcomes, "held": held}


@pytest.mark.parametrize("replies", [False, True], ids=["classes", "replies"])
def test_slices_say_what_the_whole_model_says(ranks: Any, tmp_path: Path, replies: bool) -> None:
    folder = str(write_model(tmp_path / "model", replies=replies))
    (whole,) = ranks.run(1, answers, folder, 1, 6)
    first, second = ranks.run(2, answers, folder, 2, 6)
    assert first["held"] == second["held"] < 0.75 * whole["held"]
    assert first["outcomes"] == second["outcomes"] and sorted(first["outcomes"]) == list(range(5))
    for row, values in whole["outcomes"].items():
        if replies:
            assert first["outcomes"][row]["text"] == values["text"]
        else:
            assert first["outcomes"][row]["scores"] == pytest.approx(values["scores"], abs=1e-5)


@pytest.mark.slow
def test_two_replicas_of_two_ranks(ranks: Any, tmp_path: Path) -> None:
    folder = str(write_model(tmp_path / "model", replies=False))
    if not hasattr(mixin, "initialize_distributed_mesh"):  # transformers 5.17
        with pytest.raises(RankError, match="need a newer version of transformers"):
            ranks.run(4, answers, folder, 2, 6)
        return
    (whole,) = ranks.run(1, answers, folder, 1, 6)
    four = ranks.run(4, answers, folder, 2, 6)
    assert [sorted(one["outcomes"]) for one in four] == [[0, 1], [0, 1], [2, 3, 4], [2, 3, 4]]
    for one in four:
        for row, values in one["outcomes"].items():
            assert values["scores"] == pytest.approx(whole["outcomes"][row]["scores"], abs=1e-5)


def fail_in_forward(folder: str) -> str:
    session = Session.open(None, precision="fp32", cpu=True, replica_size=2)
    asked = load_found(find_model(folder), placement=Placement(slices=2), session=session)
    answerer = asked.batch_answerer()

    def broken(model: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError("of this rank alone")

    answerer.task = type("Broken", (), {"forward": staticmethod(broken), "collate": asked.task.collate})()
    try:
        list(answerer.run(chunks_of(asked.task, asked.artifacts)))
    except TrainingFailed as error:
        return str(error)
    return "no error"


def test_what_fails_in_a_slice_is_not_halved(ranks: Any, tmp_path: Path) -> None:
    folder = str(write_model(tmp_path / "model", replies=False))
    for said in ranks.run(2, fail_in_forward, folder):
        assert "one of the ranks that hold the model together failed" in said
