"""Evaluation: every example on exactly one rank, within the memory of training, and counted exactly once."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from finetune.data.order.cost import CostModel
from finetune.inference.evaluation import Evaluator
from finetune.inference.tally import WORST, Tally
from finetune.recipe.card import BatchSpec
from finetune.tasks.batch import Answer, Score

LENGTHS = np.random.default_rng(0).integers(3, 60, size=97)
EXAMPLES = SimpleNamespace(costs=LENGTHS, ids=np.arange(len(LENGTHS)))


def assign(packing, *, capacity=64, speeds=None):
    plan = SimpleNamespace(
        training=SimpleNamespace(packing=packing, capacity=capacity),
        machine=SimpleNamespace(batch=SimpleNamespace(micro_batch=4)),
    )
    engine = SimpleNamespace(session=SimpleNamespace(replicas=3))
    return Evaluator(None, plan, None, engine, CostModel(1.0, 0.01), []).assign(EXAMPLES, speeds)


@pytest.mark.parametrize("packing", ["none", "padding_free", "packed"])
@pytest.mark.parametrize("speeds", [None, [1.0, 1.0, 0.5]])
def test_every_example_once_and_no_more_at_a_time_than_in_training(packing, speeds):
    assignment = assign(packing, capacity=200, speeds=speeds)
    micro_batches = [micro for rank in assignment.ranks for micro in rank]
    assert sorted(position for micro in micro_batches for position in micro) == list(range(97))
    if packing == "none":
        assert max(map(len, micro_batches)) == 4
    else:
        assert max(LENGTHS[list(micro)].sum() for micro in micro_batches if micro) <= 200
    assert len({len(rank) for rank in assignment.ranks}) == 1  # ranks gather predictions together
    if speeds:
        examples = [sum(map(len, rank)) for rank in assignment.ranks]
        assert examples[2] < 0.75 * examples[0]


def test_an_example_longer_than_the_capacity_is_evaluated_alone():
    assignment = assign("padding_free", capacity=8)
    assert {len(micro) for rank in assignment.ranks for micro in rank} <= {0, 1}


def pairs(ids, loss=1.0):
    return [(Answer(i, {"prediction": 1}, {"text": f"t{i}"}), Score(i, loss * i, 2, {"reference": 1})) for i in ids]


def test_the_loss_is_a_sum_over_units_and_predictions_are_written(tmp_path):
    tally = Tally(["accuracy"], [0, 3, 5], tmp_path / "predictions.jsonl", labels=["no", "yes"], num_labels=2)
    tally.add(pairs([5, 0]))
    assert not (tmp_path / "predictions.jsonl").exists()
    tally.add([])
    tally.add(pairs([3]))
    result = tally.finish("validation")
    assert result.scalars == {"loss": pytest.approx(8 / 6), "accuracy": 1.0} and result.num_examples == 3
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert lines[0] == {"id": 5, "prediction": 1, "reference": 1, "loss": 5.0, "weight": 2, "text": "t5"}
    assert [line["id"] for line in lines] == [5, 0, 3]


def test_the_worst_examples_are_kept_and_no_more():
    tally = Tally([], range(100), None)
    for start in range(0, 100, 10):
        tally.add(pairs(range(start, start + 10)))
    columns, rows = tally.finish("validation").tables["worst_examples"]
    assert [row[0] for row in rows] == list(range(99, 99 - WORST, -1)) and "text" in columns


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([0, 3], "1 examples missing (ids [5]), 0 twice ([])"),
        ([0, 3, 3, 5], "0 examples missing (ids []), 1 twice ([3])"),
        ([0, 3, 4, 5, 9], "predictions of examples that are not in this split (ids [4, 9])"),
    ],
)
def test_ids_that_do_not_add_up_are_reported(ids, problem):
    tally = Tally([], [0, 3, 5], None)
    tally.add(pairs(ids))
    assert tally.finish("validation") == problem


@pytest.mark.parametrize(
    ("decodes", "examples", "workers"), [(True, 100, 0), (True, 600, 2), (True, 9999, 3), (False, 9999, 0)]
)
def test_loader_processes_decode_where_that_is_worth_their_start(decodes, examples, workers):
    batch = SimpleNamespace(batch=SimpleNamespace(micro_batch=4))
    plan = SimpleNamespace(recipe=SimpleNamespace(data=SimpleNamespace(workers=3)), machine=batch)
    engine = SimpleNamespace(session=SimpleNamespace(device=SimpleNamespace(type="cpu"), local_world_size=1))
    task = SimpleNamespace(card=SimpleNamespace(batches=BatchSpec(decodes=decodes)))
    assert Evaluator(task, plan, None, engine, CostModel(1.0, 0.01), [])._workers(examples) == workers


def test_a_full_disk_under_predictions_is_named(tmp_path):
    """A file that is written through a buffer raises an error without its name."""
    tally = Tally([], [0], tmp_path / "predictions.jsonl")
    tally.file.close()
    tally.file = open("/dev/full", "w", encoding="utf-8")  # noqa: PTH123, SIM115
    tally.file.write("x" * 100)
    with pytest.raises(OSError, match="No space left") as caught:
        tally.finish("validation")
    assert caught.value.filename == str(tmp_path / "predictions.jsonl.incomplete")
