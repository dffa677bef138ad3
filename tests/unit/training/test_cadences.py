"""Proves what is due after which step, for every combination of periods, against a count by hand."""

import pytest

from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS
from finetune.training.cadences import Cadences, Due, TrainingLength

LENGTH = TrainingLength(total_steps=10, steps_per_epoch=4)


def due_steps(evaluate, save, log):
    values = {
        "name": "x", "task": "text_classification", "model": {"source": "bert"}, "data": {"train": "rows.csv"},
        "evaluation": {"every": evaluate}, "checkpoint": {"every": save}, "tracking": {"log_every": log},
    }  # fmt: skip
    cadences = Cadences.of(recipe_type(CARDS["text_classification"])(**values), LENGTH)
    return {name: [step for step in range(1, 11) if getattr(cadences.due(step), name)] for name in Due._fields}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("epoch", "epoch", 10), {"log": [1, 10], "evaluate": [4, 8, 10], "save": [4, 8, 10]}),
        ((3, "epoch", 5), {"log": [1, 5, 10], "evaluate": [3, 6, 9, 10], "save": [4, 8, 10]}),
        ((100, 5, 4), {"log": [1, 4, 8, 10], "evaluate": [10], "save": [5, 10]}),
    ],
)
def test_what_is_due_when(asked, expected):
    assert due_steps(*asked) == expected


def test_epochs_of_a_step():
    assert [LENGTH.epochs(step) for step in (0, 2, 4, 10)] == [0.0, 0.5, 1.0, 2.5]
