"""Proves that what an inspection calls learned is what training learns: the labels of the collated batch, for every task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from finetune.inspection.sequences import TokenSequence, example_labels, token_sequences
from finetune.models.losses import IGNORE
from finetune.tasks import CARDS
from tests.unit.inspection.inspected import Data

SUPERVISED = ("causal_lm", "preference", "seq2seq", "token_classification")


@pytest.mark.parametrize("task", SUPERVISED)
@pytest.mark.parametrize("packing", ["none", "padding_free"])
def test_learned_tokens_are_the_labels_of_the_batch(data: Callable[..., Data], task: str, packing: str) -> None:
    if packing != "none" and packing not in CARDS[task].batches.packings:
        pytest.skip("the task has one layout")
    inspection = data(task).inspection()
    settings = {**inspection.artifacts.settings, "packing": packing}
    artifacts = type(inspection.artifacts)(**{**vars(inspection.artifacts), "settings": settings})
    for position in range(5):
        example = inspection.train.examples[position]
        batch = inspection.task.collate(artifacts, [example])
        labels = batch.targets["labels"].numpy()
        sequences = token_sequences(inspection.task, artifacts, example)
        learning = [one for one in sequences if one.name != "source"]
        if len(labels) < len(learning):  # concatenated
            borders = np.cumsum([len(one.ids) for one in learning])
            labels = np.split(labels[0], borders[:-1])
        assert len(learning) == len(labels)
        for one, row in zip(learning, labels, strict=True):
            expected = row[: len(one.ids)] != IGNORE
            assert expected.any()
            assert (one.learned == expected).all()
            assert (row[len(one.ids) :] == IGNORE).all()
            if task != "token_classification":
                assert (row[: len(one.ids)][expected] == one.ids[expected]).all()


@pytest.mark.parametrize("task", ["text_classification", "reward_model", "sequence_regression"])
def test_tasks_that_judge_a_whole_learn_no_token(data: Callable[..., Data], task: str) -> None:
    inspection = data(task).inspection()
    sequences = token_sequences(inspection.task, inspection.artifacts, inspection.train.examples[0])
    assert [one.name for one in sequences] == (["chosen", "rejected"] if task == "reward_model" else [""])
    assert not any(one.learned.any() or one.generated for one in sequences)
    assert inspection.train.tokens is not None
    assert not inspection.train.tokens.supervises


def test_tags_stand_at_the_tokens_that_learn_them(data: Callable[..., Data]) -> None:
    inspection = data("token_classification").inspection()
    (one,) = token_sequences(inspection.task, inspection.artifacts, inspection.train.examples[0])
    assert one.tags is not None
    assert [tag for tag in one.tags if tag] == inspection.train.labels[0]
    assert [bool(tag) for tag in one.tags] == one.learned.tolist()


def test_a_task_may_say_itself_what_its_sequences_are(data: Callable[..., Data]) -> None:
    class Own:
        def token_sequences(self, artifacts: Any, example: Any) -> list[TokenSequence]:
            return [TokenSequence("own", example["mine"], np.array([True]))]

    artifacts = data("causal_lm").inspection().artifacts
    assert token_sequences(Own(), artifacts, {"mine": np.array([3])})[0].name == "own"


def test_runs_and_labels(data: Callable[..., Data]) -> None:
    one = TokenSequence("", np.arange(5), np.array([False, True, True, False, True]))
    assert one.runs == [(1, 3), (4, 5)]
    artifacts = data("text_classification").inspection().artifacts
    assert artifacts.labels == ["bad", "good"]
    assert example_labels(artifacts, {"label": 1}) == ["good"]
    assert example_labels(artifacts, {"label": np.array([0, 1])}) == ["bad", "good"]
    assert example_labels(artifacts, {"desirable": 0}) == ["undesirable"]
    assert example_labels(artifacts, {}) is None
