"""Evaluation is exact: the same loss and metrics on any number of ranks, each id once or an error; memory stays flat."""

import json
import time
import tracemalloc
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import GenerationConfig

from finetune.data.order.cost import CostModel
from finetune.distributed import stop_agreement
from finetune.errors import TrainingFailed
from finetune.inference.evaluation import GATHER_EVERY, Evaluator
from finetune.metrics.evaluation import EvaluationStopped
from finetune.planning.batch import BatchPlan
from finetune.planning.plan import MachinePlan, Plan, TrainingPlan
from finetune.recipe.card import BatchSpec
from finetune.tasks.batch import Answer, Batch, Score
from tests.distributed import toy

NEW_TOKENS = 48
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
    evaluator = FaultyEvaluator(task or ClassifyingTask(), plan, None, engine, CostModel(), METRICS, spoil=spoil)
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


@dataclass
class Asked:
    """Asks one rank to stop in its micro-batch, or call of the model, number `at`. seen: of this rank."""

    rank: int
    at: int
    seen: int = 0

    def note(self, *_):
        self.seen += 1

    def __call__(self):
        return self.rank == dist.get_rank() and self.seen >= self.at


class StoppedTask(ClassifyingTask):
    """Counts its micro-batches. slow: the rank that takes longer for each, so that it hears of a request in between."""

    def __init__(self, asked, slow=-1):
        self.asked, self.slow = asked, slow

    def decode(self, artifacts, outputs, batch):
        self.asked.note()
        time.sleep(0.05 if dist.get_rank() == self.slow else 0)
        return super().decode(artifacts, outputs, batch)


class WritingTask(ClassifyingTask):
    """Writes 48 tokens for each example, and counts them."""

    def __init__(self, asked):
        self.asked = asked

    def generate(self, artifacts, model, batch, *, synced):
        hook = model.register_forward_hook(self.asked.note)
        limits = GenerationConfig(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        try:
            made = model.generate(**batch.inputs, generation_config=limits, synced_gpus=synced)
        finally:
            hook.remove()
        texts = [" ".join(map(str, row)) for row in made.tolist()]
        return [{"text": text, "reference_text": text} for text in texts]


def evaluate_until_stopped(folder, config, asked, slow=None, writes=False):
    """On each rank: whether the evaluation was stopped, what this rank had computed, what is left, and the figures of
    another one afterwards, which needs the ranks' collectives to be aligned.
    """
    stop_agreement.LOOK_SECONDS = 0.5 if slow is None else 0.0
    engine, _ = toy.open_toy(config)
    task = WritingTask(asked) if writes else StoppedTask(asked, slow)
    examples, plan, metrics = toy.ToyExamples(COUNT), make_plan(1), ["exact_match"] if writes else METRICS
    evaluator = Evaluator(task, plan, None, engine, CostModel(), metrics, asked_to_stop=asked)
    weights = engine.full_state_dict() or {}
    weights = {name: weight.clone() for name, weight in weights.items()}
    try:
        evaluator.evaluate("validation", examples, out=folder / "predictions.jsonl")
        stopped = False
    except EvaluationStopped:
        stopped = True
    computed = asked.seen
    assert engine.model.training
    after = engine.full_state_dict() or {}
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    again = Evaluator(ClassifyingTask(), make_plan(MICRO_BATCH), None, engine, CostModel(), METRICS)
    scalars = again.evaluate("validation", examples).scalars  # rank 0 has removed its file by now
    return stopped, computed, sorted(path.name for path in folder.iterdir()), scalars


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("world", "config"), [(2, "none"), (2, "zero2"), (2, "zero3"), (3, "none")])
def test_one_rank_that_is_asked_to_stop_takes_all_ranks_out_of_an_evaluation(
    ranks, alone, tmp_path, world, config, rank
):
    results = ranks.options(open_group=False, timeout=120).run(
        world, evaluate_until_stopped, tmp_path, config, Asked(rank, 2)
    )
    for number, (stopped, computed, left, scalars) in enumerate(results):
        assert stopped and left == [], "every rank leaves, and nothing is left of the predictions"
        assert computed == 2 if number == rank or config == "zero3" else computed <= GATHER_EVERY
        assert scalars["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_a_rank_hears_of_the_request_before_the_ranks_meet(ranks, tmp_path):
    pool = ranks.options(open_group=False, timeout=120)
    (_, late, _, _), (_, early, _, _) = pool.run(2, evaluate_until_stopped, tmp_path, "none", Asked(1, 2), 0)
    assert early == 2 and late < GATHER_EVERY


@pytest.mark.parametrize("config", ["none", "zero3"])
def test_a_stop_does_not_wait_for_the_end_of_generated_texts(ranks, alone, tmp_path, config):
    results = ranks.options(open_group=False, timeout=120).run(
        2, evaluate_until_stopped, tmp_path, config, Asked(1, 60), writes=True
    )
    for stopped, tokens, left, scalars in results:
        assert stopped and left == [] and scalars["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert tokens < 96 or config == "none", "within the second example's 48 tokens"
    tokens = [tokens for _, tokens, _, _ in results]
    assert tokens[1] == 60 if config == "none" else tokens[0] == tokens[1]


@pytest.mark.parametrize("config", ["none", "zero3"])
def test_an_evaluation_that_nobody_stops_is_the_same(ranks, alone, tmp_path, config):
    results = ranks.options(open_group=False, timeout=120).run(
        2, evaluate_until_stopped, tmp_path, config, Asked(-1, 0)
    )
    for stopped, _, left, scalars in results:
        assert not stopped and left == ["predictions.jsonl"] and scalars["loss"] == pytest.approx(alone["loss"])


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
