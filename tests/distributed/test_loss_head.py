"""The loss head under every engine: its gradients reach the hooks that reduce them, once, with ZeRO-3's shards and slices.

Blocks of the vocabulary and chunks of tokens are small, so that each micro-batch has several.
"""

import pytest
import torch

from finetune.models import linear_loss, loss_head
from finetune.models.loss_head import install_loss_head
from finetune.tasks.batch import Batch
from finetune.tasks.text.supervised_tokens import forward_with_loss, supervised_targets
from tests.distributed import toy


class LossHeadTask(toy.ToyTask):
    """ToyTask with its loss computed by the model's head."""

    per_token = False

    def collate(self, artifacts, examples):
        batch = super().collate(artifacts, examples)
        labels = batch.targets["labels"]
        return Batch(batch.ids, batch.inputs, {"labels": labels, **supervised_targets(labels.numpy())})

    def forward(self, model, batch):
        return forward_with_loss(model, batch, per_token=self.per_token)

    def loss_sum(self, artifacts, outputs, batch):
        return outputs["loss_sum"]


class TokenLossTask(LossHeadTask):
    """As preference losses do, with a gradient for each token."""

    per_token = True


def adapted(seed=0):
    """LoRA on the head itself, and on queries."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    return get_peft_model(toy.tiny_llama(seed, tie_word_embeddings=False), config)


MODELS = {
    "tied": toy.tiny_llama,
    "untied": lambda: toy.tiny_llama(tie_word_embeddings=False),
    "lora": adapted,
}


def run(config, model, task, tensor=1):
    kept = loss_head.CHUNK_BYTES, linear_loss.BLOCK_BYTES, linear_loss._NARROWEST
    loss_head.CHUNK_BYTES, linear_loss.BLOCK_BYTES, linear_loss._NARROWEST = 4 * 64 * 3, 4 * 10 * 20, 1
    try:

        def build():
            built = MODELS[model]()
            assert install_loss_head(built) == ""
            return built

        engine, batch = toy.open_toy(config, micro_batch=2, build=build, tensor=tensor)
        return toy.train_toy(engine, batch, range(4), task=task())
    finally:
        loss_head.CHUNK_BYTES, linear_loss.BLOCK_BYTES, linear_loss._NARROWEST = kept


@pytest.fixture(scope="module")
def references():
    return {name: toy.train_reference(build(), 4) for name, build in MODELS.items()}


@pytest.mark.parametrize(
    ("config", "model", "task"),
    [
        ("none", "tied", LossHeadTask), ("none", "lora", TokenLossTask), ("zero2", "tied", TokenLossTask),
        ("zero1", "untied", LossHeadTask), ("zero3", "tied", LossHeadTask), ("zero3", "untied", TokenLossTask),
        ("zero3", "lora", LossHeadTask),
    ],
)  # fmt: skip
def test_losses_and_norms_are_those_of_the_reference(ranks, references, config, model, task):
    (losses, norms), other = ranks.options(open_group=False, timeout=120).run(2, run, config, model, task)
    assert losses == pytest.approx(references[model][0], rel=1e-5)
    assert norms == pytest.approx(references[model][1], rel=1e-4)
    assert other == (losses, norms)


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_a_sliced_head_gives_the_same_losses(ranks, references, model):
    (losses, norms), _ = ranks.options(open_group=False, timeout=120).run(2, run, "zero1", model, LossHeadTask, 2)
    assert losses == pytest.approx(references[model][0], rel=1e-5)
    assert norms == pytest.approx(references[model][1], rel=1e-4)
