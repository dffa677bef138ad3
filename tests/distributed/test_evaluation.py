"""Evaluation is exact: the same loss and metrics on any number of ranks, each id once or an error; memory stays flat."""

import json
import tracemalloc
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.order.cost import CostModel
from finetune.errors import TrainingFailed
from finetune.inference.evaluation import Evaluator
from finetune.planning.batch import BatchPlan
from finetune.planning.plan import MachinePlan, Plan, TrainingPlan
from finetune.recipe.card import BatchSpec
from finetune.tasks.batch import Answer, Batch, Score
from tests.distributed import toy

COUNT, MICRO_BATCH = 17, 8  # three micro-batches: with four ranks, one has nothing
METRICS = ["accuracy", "f1_macro", "matthews", "perplexity"]
LAYOUTS = [(2, "none"), (3, "none"), (4, "none"), (2, "zero3"), (4, "zero3"), (3, "zero2")]


class ClassifyingTask(toy.ToyTask):
    """Also predicts a class: the last token's most likely successor, modulo 3."""

    def decode(self, artifacts, outputs, batch):
        lengths = batch.inputs["attention_mask"].sum(1) - 1
        classes = outputs.logits[torch.arange(len(batch.ids)), lengths].argmax(-1) % 3
        return [Answer(i, {"prediction": int(one)}) for i, one in zip(batch.ids, classes, strict=True)]

    def score(self, artifacts, outputs, batch):
        return [replace(score, reference={"reference": score.id % 3}) for score in super().score(None, outputs, batch)]

    def metric_options(self, artifacts):
        return {"num_labels": 3}


@dataclass(frozen=True)
class FaultyEvaluator(Evaluator):
    """spoil: what becomes of the ranks' micro-batches."""

    spoil: Any = None

    def assign(self, examples, speeds):
        assignment = super().assign(examples, speeds)
        return replace(assignment, ranks=self.spoil(assignment.ranks)) if self.spoil else assignment


def make_plan(micro_batch, ranks=1):
    """What an evaluation needs of a plan: padded micro-batches of this size."""
    training = TrainingPlan("fp32", "frozen", "adamw", None, 1, (), "loss", "min", "none", 0, None)
    batch = BatchPlan(micro_batch * ranks, ranks, micro_batch, 1)
    return Plan(None, training, MachinePlan(ranks, "cpu", "ddp", None, batch, "adamw", "float32"))


def evaluate(folder, config, spoil=None, task=None):
    """On each rank: the figures, how many examples this rank computed, and how many there are; or why it failed."""
    engine, _ = toy.open_toy(config)
    examples, plan = toy.ToyExamples(COUNT), make_plan(MICRO_BATCH)
    evaluator = FaultyEvaluator(task or ClassifyingTask(), plan, None, engine, CostModel(), METRICS, spoil)
    own = sum(len(micro) for micro in evaluator.assign(examples, None).ranks[engine.session.rank])
    try:
        result = evaluator.evaluate("validation", examples, out=folder / "predictions.jsonl")
    except TrainingFailed as error:
        return str(error)
    assert engine.model.training
    return result.scalars, own, result.num_examples


@pytest.fixture(scope="module")
def alone(ranks, tmp_path_factory):
    pool = ranks.options(open_group=False, timeout=120)
    return pool.run(1, evaluate, tmp_path_factory.mktemp("alone"), "none")[0][0]


@pytest.mark.parametrize(("world", "config"), LAYOUTS)
def test_the_same_figures_on_any_number_of_ranks(ranks, alone, tmp_path, world, config):
    results = ranks.options(open_group=False, timeout=120).run(world, evaluate, tmp_path, config)
    for scalars, _, count in results:
        assert count == COUNT
        assert scalars.keys() == alone.keys() == {"loss", *METRICS}
        for name, value in scalars.items():
            assert value == pytest.approx(alone[name], rel=1e-6 if name in ("loss", "perplexity") else 0, abs=0), name
    assert (0 in [own for _, own, _ in results]) == (world == 4), "the fourth rank has nothing to do"
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == list(range(COUNT))


def without_a_micro_batch(assignment):
    return (((), *assignment[0][1:]), *assignment[1:])


def with_one_twice(assignment):
    return (((*assignment[0][0], assignment[1][0][0]), *assignment[0][1:]), *assignment[1:])


@pytest.mark.parametrize(
    ("spoil", "problem"), [(without_a_micro_batch, "missing (ids ["), (with_one_twice, "1 twice ([")]
)
def test_a_missing_or_repeated_example_is_named_on_every_rank(ranks, tmp_path, spoil, problem):
    first, second = ranks.options(open_group=False, timeout=120).run(2, evaluate, tmp_path, "none", spoil)
    assert first == second and problem in first and "evaluation of validation" in first


class StrayTask(ClassifyingTask):
    """Answers for an example that the split does not have."""

    def decode(self, artifacts, outputs, batch):
        return [replace(answer, id=99) if answer.id == 3 else answer for answer in super().decode(None, outputs, batch)]


def test_an_example_that_is_not_in_the_split_is_named(ranks, tmp_path):
    pool = ranks.options(open_group=False, timeout=120)
    (problem,) = pool.run(1, evaluate, tmp_path, "none", task=StrayTask())
    assert "99" in problem and "not in this split" in problem


class CheapExamples:
    """Any number of them in a few bytes each."""

    def __init__(self, count):
        self.ids, self.costs = np.arange(count), np.ones(count, dtype=np.int64)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"id": index}


class CheapTask:
    """Predicts without computing."""

    card = SimpleNamespace(batches=BatchSpec())

    def collate(self, artifacts, examples):
        return Batch(tuple(example["id"] for example in examples), {"x": torch.zeros(len(examples), 1)})

    def forward(self, model, batch):
        return batch.inputs["x"]

    def decode(self, artifacts, outputs, batch):
        return [Answer(i, {"prediction": i % 2}) for i in batch.ids]

    def score(self, artifacts, outputs, batch):
        return [Score(i, 0.5, 1, {"reference": 0}) for i in batch.ids]

    def metric_options(self, artifacts):
        return {"num_labels": 2}


class AloneSession:
    replica, replicas, is_main, device = 0, 1, True, torch.device("cpu")

    def gather(self, value):
        return [list(value)]

    def broadcast(self, value):
        return value


def peak_bytes(count):
    """Of an evaluation, beyond the ids and costs of the examples."""
    model = torch.nn.Linear(1, 1)
    engine = SimpleNamespace(
        session=AloneSession(),
        model=model,
        module=model,
        align_buffers=lambda: None,
        owns_outputs=True,
        shards_weights=False,
    )
    examples = CheapExamples(count)
    evaluator = Evaluator(CheapTask(), make_plan(512), None, engine, CostModel(), ["perplexity"])
    tracemalloc.start()
    try:
        result = evaluator.evaluate("validation", examples)
        return tracemalloc.get_traced_memory()[1], result.scalars
    finally:
        tracemalloc.stop()


def test_memory_stays_flat_with_the_number_of_examples():
    peak_bytes(100)  # imports
    small, _ = peak_bytes(20_000)
    large, scalars = peak_bytes(120_000)
    assert scalars["loss"] == pytest.approx(0.5)
    assert (large - small) / 100_000 < 64, "bytes per further example: its position, and that it was seen"
