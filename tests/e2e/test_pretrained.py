"""Pretrained weights: every engine starts from them, with dropout from the first step, and gives shared memory back."""

from pathlib import Path

import pytest

from tests.e2e import tiny

STEPS = ("training.epochs=null", "training.steps=6", "checkpoint.every=3", "checkpoint.keep=4", "evaluation.every=6")


@pytest.fixture(scope="module")
def pretrained(workplace):
    """A recipe that begins from a folder of weights, as one of the hub would."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, set_seed

    from finetune.models.source import resolve_model

    set_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(tiny.PACKAGE))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(workplace / "weights")
    tokenizer.save_pretrained(workplace / "weights")
    evaluation = {"metrics": ["accuracy"], "best": "loss", "samples": 0}
    tiny.write_recipe(workplace, "pretrained.yaml", model={"source": "./weights"}, evaluation=evaluation)
    return "pretrained.yaml"


@pytest.fixture(scope="module")
def zero2(workers, pretrained):
    return workers.train(2, "pretrained-zero2", *STEPS, recipe=pretrained)


@pytest.mark.parametrize("stage", ["zero3", "none"])
def test_every_engine_starts_from_the_same_weights(workers, pretrained, zero2, stage):
    run = workers.train(2, f"pretrained-{stage}", *STEPS, f"parallel.deepspeed={stage}", recipe=pretrained)
    expected, found = tiny.losses(zero2), tiny.losses(run)
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert [found[step] for step in found] == pytest.approx([expected[step] for step in found], rel=1e-5)


def test_a_resumed_run_has_its_dropout_from_its_first_step(workers, pretrained, zero2):
    resume = str(zero2 / "checkpoints" / "step-00000003")
    run = workers.train(2, "pretrained-resumed", *STEPS, recipe=pretrained, resume=resume)
    expected, found = tiny.losses(zero2), tiny.losses(run)
    assert found == {step: expected[step] for step in (4, 5, 6)}


def test_no_run_leaves_anything_in_shared_memory(zero2):
    assert not list(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*_pretrained*"))
    before = set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*"))
    assert all(not file.exists() or file.stat().st_mtime < zero2.stat().st_mtime for file in before)
