"""Tests COCO mean average precision against cases computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.metrics import MetricSet
from finetune.metrics.map import Map


def detected(*boxes: list[float], labels: list[int], scores: list[float]) -> dict[str, Any]:
    return {"boxes": list(boxes), "labels": labels, "scores": scores}


def truth(*boxes: list[float], labels: list[int], crowd: list[int] | None = None) -> dict[str, Any]:
    return {"boxes": list(boxes), "labels": labels, "crowd": crowd or [0] * len(labels)}


def measure(rows: list[tuple[dict[str, Any], dict[str, Any]]], labels: tuple[str, ...] = ("cat", "dog")) -> Any:
    metrics = MetricSet(["map"], labels=labels)
    for detections, objects in rows:
        metrics.add([{"detections": detections, "objects": objects}])
    return metrics.compute()


CAT, DOG = [10.0, 10.0, 40.0, 40.0], [60.0, 60.0, 100.0, 100.0]


def test_correct_detections_give_one() -> None:
    rows = [(detected(CAT, DOG, labels=[0, 1], scores=[0.9, 0.8]), truth(CAT, DOG, labels=[0, 1]))]
    results = measure(rows)
    assert results.scalars["map"] == results.scalars["map50"] == results.scalars["map75"] == pytest.approx(1.0)
    assert results.scalars["map_medium"] == results.scalars["map_large"] == pytest.approx(1.0)
    assert "map_small" not in results.scalars  # no small object: undefined, not 0
    columns, table = results.tables["per_class_map"]
    assert columns == ["label", "map", "map50", "map75", "objects"]
    assert [[row[0], row[-1]] for row in table] == [["cat", 1], ["dog", 1]]


def test_a_detection_counts_up_to_its_iou() -> None:
    """Shifted by 6 of 40 pixels, the IoU is 34 / 46 = 0.739: detected at 0.50 to 0.70, five of ten thresholds."""
    moved = [16.0, 10.0, 40.0, 40.0]
    results = measure([(detected(moved, labels=[0], scores=[0.9]), truth(CAT, labels=[0]))])
    assert results.scalars["map"] == pytest.approx(0.5)
    assert results.scalars["map50"] == pytest.approx(1.0) and results.scalars["map75"] == 0.0


def test_a_missed_class_halves_the_mean_and_a_wrong_one_costs_precision() -> None:
    rows = [(detected(CAT, CAT, labels=[1, 0], scores=[0.95, 0.9]), truth(CAT, DOG, labels=[0, 1]))]
    results = measure(rows)
    assert results.scalars["map"] == pytest.approx(0.5)
    _, table = results.tables["per_class_map"]
    assert [row[1] for row in table] == [pytest.approx(1.0), 0.0]


def test_a_false_positive_with_the_higher_score() -> None:
    """Precision is 1/2 at every recall: average precision 0.5."""
    elsewhere = [150.0, 150.0, 40.0, 40.0]
    results = measure([(detected(elsewhere, CAT, labels=[0, 0], scores=[0.9, 0.5]), truth(CAT, labels=[0]))])
    assert results.scalars["map"] == pytest.approx(0.5)


def test_detections_in_a_crowd_are_ignored() -> None:
    rows = [(detected(CAT, DOG, labels=[0, 0], scores=[0.5, 0.9]), truth(CAT, DOG, labels=[0, 0], crowd=[0, 1]))]
    assert measure(rows).scalars["map"] == pytest.approx(1.0)


def test_no_detections_are_zero_and_no_objects_undefined() -> None:
    no_detections, no_objects = detected(labels=[], scores=[]), truth(labels=[])
    assert measure([(no_detections, truth(CAT, labels=[0]))]).scalars["map"] == 0.0
    assert measure([(detected(CAT, labels=[0], scores=[0.9]), no_objects)]).scalars == {}
    assert measure([]).scalars == {}


def test_it_is_an_evaluate_metric() -> None:
    metric = Map()
    metric.add(detections=detected(CAT, labels=[0], scores=[0.9]), objects=truth(CAT, labels=[0]))
    assert metric.compute()["map"] == pytest.approx(1.0)
    assert metric.measure({"detections": [], "objects": []})["map"] is None  # type: ignore[arg-type]
