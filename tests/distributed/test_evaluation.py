"""Evaluation is exact: the same loss and metrics on any number of ranks, each id once or told; memory stays flat."""

import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finetune.training.evaluation import evaluate

from finetune.data.order.assignment import Assignment, assign_evaluation
from finetune.errors import TrainingFailed
from finetune.tasks.task import Batch, Kit, Prediction
from tests.distributed import toy

COUNT, MICRO_BATCH = 17, 8  # three micro-batches: with four ranks, one has nothing
METRICS = ["accuracy", "f1_macro", "matthews", "perplexity"]
LAYOUTS = [(2, "none"), (3, "none"), (4, "none"), (2, "zero3"), (4, "zero3"), (3, "zero2")]


class JudgedTask(toy.ToyTask):
    """Also says a class: the last token's most likely successor, modulo 3."""

    def predict(self, kit, outputs, batch):
        lengths = batch.inputs["attention_mask"].sum(1) - 1
        classes = outputs.logits[torch.arange(len(batch.ids)), lengths].argmax(-1) % 3
        return [
            Prediction(
                p.id,
                {"prediction": int(said), "reference": p.id % 3, "loss": p.loss, "weight": p.weight},
                p.loss,
                p.weight,
            )
            for p, said in zip(super().predict(kit, outputs, batch), classes, strict=True)
        ]


def judge(folder, config, spoil=None):
    """On each rank: scalars of an evaluation, how many examples this rank predicted, and what was said against it."""
    engine, _ = toy.open_toy(config)
    session, task = engine.session, JudgedTask()
    examples = toy.ToyExamples(COUNT)
    assignment = assign_evaluation(examples.costs, session.world_size, MICRO_BATCH)
    if spoil is not None:
        assignment = Assignment(spoil(assignment.ranks), assignment.loads, assignment.speed)
    kit = Kit(None, None, {"validation": examples}, {}, metric_options={"num_labels": 3})
    own = sum(len(micro) for micro in assignment.ranks[session.rank])
    try:
        result = evaluate(
            task, kit, engine, "validation", metrics=METRICS, assignment=assignment, out=folder / "predictions.jsonl"
        )
    except TrainingFailed as error:
        return str(error)
    assert engine.model.training
    return result.scalars, own, result.num_examples


@pytest.fixture(scope="module")
def alone(ranks, tmp_path_factory):
    pool = ranks.options(open_group=False, timeout=120)
    return pool.run(1, judge, tmp_path_factory.mktemp("alone"), "none")[0][0]


@pytest.mark.parametrize(("world", "config"), LAYOUTS)
def test_the_same_figures_on_any_number_of_ranks(ranks, alone, tmp_path, world, config):
    results = ranks.options(open_group=False, timeout=120).run(world, judge, tmp_path, config)
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


@pytest.mark.parametrize(("spoil", "said"), [(without_a_micro_batch, "missing (ids ["), (with_one_twice, "1 twice ([")])
def test_a_missing_or_repeated_example_is_named_on_every_rank(ranks, tmp_path, spoil, said):
    told = ranks.options(open_group=False, timeout=120).run(2, judge, tmp_path, "none", spoil)
    assert told[0] == told[1] and said in told[0] and "evaluation of validation" in told[0], told


def test_an_example_that_is_none_of_the_split_is_named(ranks, tmp_path):
    told = ranks.options(open_group=False, timeout=120).run(1, judge_stranger, tmp_path)[0]
    assert "99" in told and "not of this split" in told, told


class Stranger(JudgedTask):
    def predict(self, kit, outputs, batch):
        said = super().predict(kit, outputs, batch)
        return [Prediction(99, p.values, p.loss, p.weight) if p.id == 3 else p for p in said]


def judge_stranger(folder):
    engine, _ = toy.open_toy("none")
    examples = toy.ToyExamples(COUNT)
    assignment = assign_evaluation(examples.costs, 1, MICRO_BATCH)
    kit = Kit(None, None, {"validation": examples}, {}, metric_options={"num_labels": 3})
    try:
        evaluate(Stranger(), kit, engine, "validation", metrics=[], assignment=assignment)
    except TrainingFailed as error:
        return str(error)


class CheapExamples:
    """A million of them in a few bytes."""

    def __init__(self, count):
        self.ids, self.costs = np.arange(count), np.ones(count, dtype=np.int64)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"id": index}


class CheapTask:
    """Predicts without computing."""

    def collate(self, kit, examples):
        return Batch(tuple(example["id"] for example in examples), {"x": torch.zeros(len(examples), 1)})

    def forward(self, model, batch):
        return batch.inputs["x"]

    def predict(self, kit, outputs, batch):
        return [Prediction(i, {"prediction": i % 2, "reference": 0}, 0.5, 1) for i in batch.ids]


class AloneSession:
    replica, is_main, device = 0, True, torch.device("cpu")

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
    kit = Kit(None, None, {"validation": examples}, {}, metric_options={"num_labels": 2})
    tracemalloc.start()
    try:
        assignment = assign_evaluation(examples.costs, 1, 512)
        result = evaluate(CheapTask(), kit, engine, "validation", metrics=["perplexity"], assignment=assignment)
        return tracemalloc.get_traced_memory()[1], result.scalars
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(600)
def test_memory_stays_flat_with_a_million_examples():
    peak_bytes(100)  # imports
    small, _ = peak_bytes(20_000)
    large, scalars = peak_bytes(1_000_000)
    print(f"peak {small / 1e6:.1f} MB with 20,000 examples, {large / 1e6:.1f} MB with a million")
    assert scalars["loss"] == pytest.approx(0.5)
    assert (large - small) / 980_000 < 64, "bytes for one more example: its place, and that it was seen"
