"""What a training step asks of its device: tensors of these tests are on a CPU, where nothing waits; the questions are seen.

Every question is a moment at which the host of a GPU waits until the GPU has done all that it was given.
"""

import math
import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks.counting import Waits
from finetune.distributed.engines.engine import EngineOptions
from finetune.distributed.engines.registry import open_engine
from finetune.distributed.session import Session
from finetune.models import segmented
from finetune.training.parameter_groups import make_optimizer
from finetune.training.step import train_step
from tests.contract.examples import EXAMPLES
from tests.distributed import toy
from tests.prepared import prepare
from tests.unit.models.test_segmented import Kernel

HOST = ("distributed/session.py", "distributed/prefetcher.py")  # sums of plain numbers over gloo
PADDED = "masking_utils.py"  # transformers asks whether a padded batch is padded at all
BORDERS = (
    "in _blocks"  # attention with dropout, which the kernel does not have: once per micro-batch, as for a padded mask
)
TEXTS = ("preference", "reward_model", "seq2seq", "sequence_regression", "text_classification", "token_classification")


def ask(folder, task, precision, kernel_of):
    """The second step of a tiny training: places where it asks for values, and what reached the attention kernel."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    example = next(example for example in EXAMPLES if example.task == task)
    options = {"loss": "simpo"} if task == "preference" else example.options  # needs no reference
    ready = prepare(example.recipe(Path(folder), training={"precision": precision}, options=options))
    session = Session.open(None, precision=precision, cpu=True)
    training = ready.plan.recipe.training
    engine = open_engine(
        "ddp", session, ready.build(), lambda module: make_optimizer(module, training, "adamw"), EngineOptions(1.0)
    )
    engine.model.train()
    kernel = Kernel()
    with (
        mock.patch("torch.nn.attention.varlen.varlen_attn", getattr(kernel, kernel_of)),
        mock.patch.object(segmented, "_has_ampere", lambda device: precision != "fp32"),
    ):
        for _ in range(2):
            kernel.calls, batches = 0, [ready.batch((0, 1, 2)), ready.batch((3, 4))]
            with Waits() as waits:
                result = train_step(ready.task, ready.artifacts, engine, batches, stop=False)
    places = {place: count for place, count in waits.places.items() if not any(host in place for host in HOST)}
    return places, kernel.calls, result.loss


def asked(ranks, tmp_path, task, precision, kernel="torch_2_13"):
    return ranks.options(open_group=False, timeout=120).run(1, ask, str(tmp_path), task, precision, kernel)[0]


@pytest.mark.parametrize("kernel", ["torch_2_11", "torch_2_13"])
def test_a_packed_step_in_half_precision_asks_for_nothing(ranks, tmp_path, kernel):
    """The stand-in of the kernel takes half precision alone; it asks for its own borders, as a GPU's does not."""
    places, calls, _ = asked(ranks, tmp_path, "causal_lm", "bf16", kernel)
    assert [place for place in places if "test_segmented.py" not in place] == []
    assert calls == 2 * len([1, 2])  # two layers, two micro-batches


def test_a_packed_step_in_float32_asks_for_borders_once_per_micro_batch(ranks, tmp_path):
    places, calls, _ = asked(ranks, tmp_path, "causal_lm", "fp32")
    assert calls == 0 and all("in _blocks" in place for place in places) and list(places.values()) == [2]


@pytest.mark.parametrize("task", [*TEXTS, "image_classification"])
def test_steps_of_other_tasks_ask_for_nothing_of_their_own(ranks, tmp_path, task):
    places, _, loss = asked(ranks, tmp_path, task, "bf16")
    known = (PADDED, BORDERS, "test_segmented.py") if task in TEXTS else ()
    assert [place for place in places if not any(name in place for name in known)] == []
    assert all(count == 2 for place, count in places.items() if BORDERS in place)  # micro-batches, not layers
    assert loss > 0


def overflow(config, precision):
    """Losses and gradient norms of two steps, the second with an infinite gradient; and what was asked in the first."""
    engine, _ = toy.open_toy(config, precision=precision, micro_batch=8)
    task, examples, results, questions = toy.ToyTask(), toy.ToyExamples(), [], []
    weight = dict(engine.module.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    batches = [task.collate(None, [examples[i] for i in range(8)])]
    for broken in (False, True):
        if broken:
            weight.register_hook(lambda gradient: gradient * torch.inf)
        with Waits() as waits:
            results.append(train_step(task, None, engine, batches, stop=False))
        questions.append(list(waits.places))
    return [(result.loss, result.grad_norm) for result in results], questions[0]


@pytest.mark.parametrize("config", ["zero1", "zero2", "zero3"])
def test_an_infinite_gradient_is_seen_without_deepspeeds_own_search(ranks, config):
    """DeepSpeed searches all gradients for overflow and asks the device, in bf16 too; the norm says as much."""
    ((loss, norm), (again, broken)), places = ranks.options(open_group=False, timeout=120).run(
        1, overflow, config, "bf16"
    )[0]
    assert math.isfinite(loss) and math.isfinite(norm) and norm > 0 and math.isfinite(again)
    assert not math.isfinite(broken)
    assert not [place for place in places if "overflow" in place]


def test_questions_are_seen():
    """The instrument itself: each way to ask counts once."""
    value = torch.ones(2)
    ways = [
        lambda: value[0].item(), value.tolist, lambda: bool(value[0] > 0), lambda: float(value[0]), value.cpu,
        value.nonzero, value.numpy, lambda: torch.equal(value, value),
    ]  # fmt: skip
    for way in ways:
        with Waits() as waits:
            value + 1
            way()
        assert sum(waits.places.values()) == 1, waits.places
