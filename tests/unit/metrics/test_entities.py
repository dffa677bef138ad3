"""Tests counts of entities against seqeval, and against counts by hand where it is not installed."""

from __future__ import annotations

import random

import numpy as np
import pytest

from finetune.metrics import MetricSet
from finetune.metrics.spans import count_entities, entity_spans

NAMES = ("entity_precision", "entity_recall", "entity_f1", "word_accuracy", "per_entity")


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O", []),
        ("B-a I-a O I-b", [("a", 0, 2), ("b", 3, 4)]),
        ("B-a B-a I-a", [("a", 0, 1), ("a", 1, 3)]),
        ("B-a I-b I-b", [("a", 0, 1), ("b", 1, 3)]),
        ("S-a B-b E-b I-b", [("a", 0, 1), ("b", 1, 3), ("b", 3, 4)]),
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
    ],
)
def test_spans_by_hand(tags: str, spans: list[tuple[str, int, int]]) -> None:
    assert entity_spans(tags.split()) == spans


def test_metrics_equal_seqeval() -> None:
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is a peer: pip install seqeval")
    rng = random.Random(3)
    kinds = ["O", "B-x", "I-x", "B-y", "I-y", "E-x", "S-y"]
    sentences = [[rng.choice(kinds) for _ in range(rng.randint(1, 12))] for _ in range(300)]
    wanted = [[tag if rng.random() < 0.7 else rng.choice(kinds) for tag in tags] for tags in sentences]
    both = [np.empty(len(sentences), object) for _ in range(2)]
    for index, pair in enumerate(zip(sentences, wanted, strict=True)):
        both[0][index], both[1][index] = pair
    counts = count_entities(*both, None)
    expected = tuple(getattr(seqeval, f"{name}_score")(wanted, sentences) for name in ("precision", "recall", "f1"))
    assert counts.figures() == pytest.approx(expected)
    report = seqeval.classification_report(wanted, sentences, output_dict=True)
    for entity in ("x", "y"):
        assert counts.figures(entity)[2] == pytest.approx(report[entity]["f1-score"])
        assert counts.references[entity] == report[entity]["support"]


def test_a_metric_set_over_chunks_of_unequal_sentences() -> None:
    labels = ["B-loc", "B-per", "I-per", "O"]
    collected = MetricSet(NAMES, labels=labels)
    collected.add([{"tags": [1, 2, 3, 0], "reference_tags": [1, 2, 3, 3]}])
    collected.add([{"tags": [3], "reference_tags": [0]}, {"tags": [1, 3], "reference_tags": [1, 2]}])
    results = collected.compute()
    assert results.scalars == pytest.approx(
        {"entity_precision": 1 / 3, "entity_recall": 1 / 3, "entity_f1": 1 / 3, "word_accuracy": 4 / 7}
    )
    columns, rows = results.tables["per_entity"]
    assert columns == ["entity", "precision", "recall", "f1", "support"]
    assert rows == [["loc", 0.0, 0.0, 0.0, 1], ["per", 0.5, 0.5, 0.5, 2]]


def test_no_examples_have_no_value() -> None:
    results = MetricSet(NAMES, labels=["O"]).compute()
    assert results.scalars == {} and results.tables["per_entity"][1] == []
