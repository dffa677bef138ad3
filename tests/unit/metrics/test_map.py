"""Proves COCO's mean average precision by cases that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.metrics import MetricSet
from finetune.metrics.map import Map


def found(*boxes: list[float], labels: list[int], scores: list[float]) -> dict[str, Any]:
    return {"boxes": list(boxes), "labels": labels, "scores": scores}


def there(*boxes: list[float], labels: list[int], crowd: list[int] | None = None) -> dict[str, Any]:
    return {"boxes": list(boxes), "labels": labels, "crowd": crowd or [0] * len(labels)}


def measure(rows: list[tuple[dict[str, Any], dict[str, Any]]], labels: tuple[str, ...] = ("cat", "dog")) -> Any:
    metrics = MetricSet(["map"], labels=labels)
    for detections, objects in rows:
        metrics.add([{"detections": detections, "objects": objects}])
    return metrics.compute()


CAT, DOG = [10.0, 10.0, 40.0, 40.0], [60.0, 60.0, 100.0, 100.0]


def test_everything_found_is_one() -> None:
    rows = [(found(CAT, DOG, labels=[0, 1], scores=[0.9, 0.8]), there(CAT, DOG, labels=[0, 1]))]
    results = measure(rows)
    assert results.scalars["map"] == results.scalars["map50"] == results.scalars["map75"] == pytest.approx(1.0)
    assert results.scalars["map_medium"] == results.scalars["map_large"] == pytest.approx(1.0)
    assert "map_small" not in results.scalars  # there is no small object: undefined, not 0
    columns, table = results.tables["per_class_map"]
    assert columns == ["label", "map", "map50", "map75", "objects"]
    assert [[row[0], row[-1]] for row in table] == [["cat", 1], ["dog", 1]]


def test_an_overlap_counts_up_to_its_threshold() -> None:
    """Moved by 6 of 40 pixels the overlap is 34 / 46 = 0.739: found at 0.50 to 0.70, five of ten thresholds."""
    moved = [16.0, 10.0, 40.0, 40.0]
    results = measure([(found(moved, labels=[0], scores=[0.9]), there(CAT, labels=[0]))])
    assert results.scalars["map"] == pytest.approx(0.5)
    assert results.scalars["map50"] == pytest.approx(1.0) and results.scalars["map75"] == 0.0


def test_a_missed_class_halves_the_mean_and_a_wrong_one_costs_precision() -> None:
    rows = [(found(CAT, CAT, labels=[1, 0], scores=[0.95, 0.9]), there(CAT, DOG, labels=[0, 1]))]
    results = measure(rows)
    assert results.scalars["map"] == pytest.approx(0.5)
    _, table = results.tables["per_class_map"]
    assert [row[1] for row in table] == [pytest.approx(1.0), 0.0]


def test_a_false_alarm_before_the_right_one() -> None:
    """Precision is 1/2 at every recall: average precision 0.5."""
    elsewhere = [150.0, 150.0, 40.0, 40.0]
    results = measure([(found(elsewhere, CAT, labels=[0, 0], scores=[0.9, 0.5]), there(CAT, labels=[0]))])
    assert results.scalars["map"] == pytest.approx(0.5)


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong() -> None:
    rows = [(found(CAT, DOG, labels=[0, 0], scores=[0.5, 0.9]), there(CAT, DOG, labels=[0, 0], crowd=[0, 1]))]
    assert measure(rows).scalars["map"] == pytest.approx(1.0)


def test_nothing_found_is_zero_and_nothing_there_is_undefined() -> None:
    none_found, none_there = found(labels=[], scores=[]), there(labels=[])
    assert measure([(none_found, there(CAT, labels=[0]))]).scalars["map"] == 0.0
    assert measure([(found(CAT, labels=[0], scores=[0.9]), none_there)]).scalars == {}
    assert measure([]).scalars == {}


def test_it_is_an_evaluate_module() -> None:
    metric = Map()
    metric.add(detections=found(CAT, labels=[0], scores=[0.9]), objects=there(CAT, labels=[0]))
    assert metric.compute()["map"] == pytest.approx(1.0)
    assert metric.measure({"detections": [], "objects": []})["map"] is None  # type: ignore[arg-type]
