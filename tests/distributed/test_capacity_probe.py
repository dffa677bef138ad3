"""The probe of `data.capacity: auto`: the training after it has the same numbers bit for bit, under every engine; ranks agree
on the smallest; a lack of memory is a smaller micro-batch.
"""

from unittest import mock

import numpy as np
import pytest
import torch

from finetune.distributed.engines.engine import Rehearsal
from finetune.planning import capacity as rules
from finetune.training.capacity_probe import CapacityProbe
from tests.distributed import toy

STEPS = 4


class SmallMemory(toy.ToyTask):
    """Rank 1 has memory for `limit` tokens at once."""

    def __init__(self, rank, limit):
        self.limit = limit if rank == 1 else 10**9

    def forward(self, model, batch):
        outputs = super().forward(model, batch)
        if int(batch.inputs["attention_mask"].sum()) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs


def probe(engine, *, first, limit, memory=10**9):
    task, examples = SmallMemory(engine.session.rank, memory), toy.ToyExamples()
    made = CapacityProbe(task, None, engine, examples, seed=5, global_batch=40)
    with mock.patch.object(rules, "WORTH_GROWING", 0.0), mock.patch.object(rules, "SECONDS", 1e9):
        return made.choose(first=first, limit=limit)


def train(config, precision, masters, probed):
    """Losses and norms of some steps; probed: with passes before the first one, and between two."""
    build = (lambda: toy.tiny_llama().bfloat16()) if masters else toy.tiny_llama
    engine, batch = toy.open_toy(config, precision=precision, micro_batch=2, masters=masters, build=build)
    engine.model.train()
    figures, choices = [], []
    for first in range(0, STEPS, 2):
        if probed:
            torch.manual_seed(7)
            before = torch.get_rng_state()
            choices.append(probe(engine, first=24, limit=200).capacity)
            assert torch.equal(torch.get_rng_state(), before)
        figures.append(toy.train_toy(engine, batch, range(first, first + 2)))
    weights = engine.full_state_dict()
    return figures, choices, None if weights is None else {name: tensor.float() for name, tensor in weights.items()}


KINDS = [
    ("none", "fp32", False),
    ("none", "bf16", True),
    ("zero1", "bf16", False),
    ("zero2", "fp32", False),
    ("zero3", "bf16", False),
]


@pytest.mark.parametrize(("config", "precision", "masters"), KINDS)
def test_a_training_does_not_notice_it(ranks, config, precision, masters):
    pool = ranks.options(open_group=False, timeout=120)
    plain, _, weights = pool.run(2, train, config, precision, masters, False)[0]
    found = pool.run(2, train, config, precision, masters, True)
    figures, choices, probed_weights = found[0]
    assert choices == [192, 192] == found[1][1], "the passes ran"
    assert figures == plain
    assert len(weights) > 10 and all(torch.equal(weights[name], probed_weights[name]) for name in weights)


def find(config, first, memory):
    engine, _ = toy.open_toy(config)
    choice = probe(engine, first=first, limit=200, memory=memory)
    left = [name for name, parameter in engine.module.named_parameters() if parameter.grad is not None]
    return choice.capacity, choice.reason, [one.capacity for one in choice.measured], left


@pytest.mark.parametrize("config", ["none", "zero2"])
def test_ranks_take_what_the_smallest_holds(ranks, config):
    pool = ranks.options(open_group=False, timeout=120)
    upward = pool.run(2, find, config, 24, 60)
    assert upward[0] == upward[1] == (48, "memory", [24, 48, 96], [])
    downward = pool.run(2, find, config, 192, 60)
    assert downward[0] == downward[1] == (48, "memory", [192, 96, 48], [])


def normalize(probed):
    """Running statistics and gradients of a model with BatchNorm, alone, before and after a rehearsal."""
    engine, _ = toy.open_toy("none", build=lambda: torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)))
    engine.module.train()
    before = [buffer.clone() for buffer in engine.module.buffers()]
    if probed:
        rehearsal = Rehearsal(lambda model, batch: model(batch), lambda outputs, batch: outputs.square().sum())
        engine.rehearse(torch.from_numpy(np.ones((5, 4), dtype=np.float32)), rehearsal)
    else:
        engine.module(torch.ones(5, 4))
    return all(torch.equal(one, other) for one, other in zip(before, engine.module.buffers(), strict=True))


def test_statistics_do_not_see_it(ranks):
    pool = ranks.options(open_group=False, timeout=120)
    assert pool.run(1, normalize, True) == [True]
    assert pool.run(1, normalize, False) == [False]
