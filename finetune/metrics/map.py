"""COCO mean average precision, computed by faster-coco-eval: over all classes, sizes and thresholds, and per class.

AP as in Lin et al., "Microsoft COCO: Common Objects in Context" (2014) and the COCO detection challenge: the mean over
classes and IoU (intersection over union) thresholds 0.50, 0.55 ... 0.95, with at most 100 detections per image. Sizes
are in pixels of the stored image: small is below 32 x 32, large is 96 x 96 or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import numpy as np

from finetune.metrics.metric import LocalMetric

FIGURES = ("map", "map50", "map75", "map_small", "map_medium", "map_large")  # the first six values of the COCO summary
IOU_50, IOU_75 = 0, 5  # indices of the thresholds 0.50 and 0.75
ALL_SIZES, MAX_DETECTIONS = 0, -1  # indices of the size range and the limit of detections


class Map(LocalMetric):
    """COCO mean average precision.

    detections: [examples], each {"boxes": [[x, y, w, h]], "labels": [int], "scores": [float]}.
    objects: [examples], each {"boxes": [[x, y, w, h]], "labels": [int], "crowd": [0 or 1]}; crowd: optional, default 0.
    Results are map, map50, map75, map_small, map_medium, map_large (None if there is no object of that size) and the
    table per_class_map. Without detections, map is 0.
    """

    inputs: ClassVar[tuple[str, ...]] = ("detections", "objects")
    description = "COCO mean average precision."
    undefined = "there are no objects"

    def _feature(self, name: str) -> Any:
        numbers = {"labels": datasets.Sequence(datasets.Value("int64"))}
        numbers["scores" if name == "detections" else "crowd"] = datasets.Sequence(datasets.Value("float64"))
        return {"boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))), **numbers}

    def measure(self, arrays: Mapping[str, np.ndarray], *, labels: list[str] | None = None) -> dict[str, Any]:
        """{"map": number or None, ..., "per_class_map": table}."""
        detections = list(arrays["detections"])
        objects = [{"crowd": [0] * len(image["labels"]), **image} for image in arrays["objects"]]
        names = labels or _numbered_names(objects)
        counted = [
            label
            for image in objects
            for label, crowd in zip(image["labels"], image["crowd"], strict=True)
            if not crowd
        ]
        counts = np.bincount(np.asarray(counted, np.int64), minlength=len(names))
        if not counts.sum():
            return dict.fromkeys(FIGURES)
        precision, summary = _evaluate(detections, objects, len(names))
        figures = {name: _defined(value) for name, value in zip(FIGURES, summary, strict=True)}
        rows = [
            [name, *(_mean(part) for part in _of_class(precision, index)), int(counts[index])]
            for index, name in enumerate(names)
        ]
        return {**figures, "per_class_map": {"columns": ["label", "map", "map50", "map75", "objects"], "rows": rows}}

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> Any:
        """The value of "map"."""
        return self.measure(dict(zip(self.inputs, inputs, strict=True)), labels=labels)["map"]


def _evaluate(
    detections: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]], num_classes: int
) -> tuple[np.ndarray, Sequence[float]]:
    """(precision [thresholds, recalls, classes, sizes, limits], -1 where undefined; first six summary values)."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(
        {
            "images": [{"id": image} for image in range(len(objects))],
            "categories": [{"id": index, "name": str(index)} for index in range(num_classes)],
            "annotations": list(_annotations(objects)),
        },
        print_function=_silent,
    )
    results = list(_results(detections))
    if not results:  # COCO needs at least one: a box that matches nothing
        results = [{"image_id": 0, "category_id": 0, "bbox": [0.0, 0.0, 1e-3, 1e-3], "score": 0.0}]
    evaluation = COCOeval_faster(truth, truth.loadRes(results), iouType="bbox", print_function=_silent)
    evaluation.run()
    return np.asarray(evaluation.eval["precision"]), evaluation.stats[: len(FIGURES)]


def _annotations(objects: Sequence[Mapping[str, Any]]) -> Any:
    number = 0
    for image, truth in enumerate(objects):
        for box, label, crowd in zip(truth["boxes"], truth["labels"], truth["crowd"], strict=True):
            number += 1
            area = float(box[2] * box[3])
            yield {
                "id": number, "image_id": image, "category_id": int(label), "bbox": list(box), "area": area,
                "iscrowd": int(crowd),
            }  # fmt: skip


def _results(detections: Sequence[Mapping[str, Any]]) -> Any:
    for image, detected in enumerate(detections):
        for box, label, score in zip(detected["boxes"], detected["labels"], detected["scores"], strict=True):
            yield {"image_id": image, "category_id": int(label), "bbox": list(box), "score": float(score)}


def _of_class(precision: np.ndarray, index: int) -> tuple[np.ndarray, ...]:
    """Precision of a class over all recalls: at all IoU thresholds, at 0.50, at 0.75."""
    all_thresholds = precision[:, :, index, ALL_SIZES, MAX_DETECTIONS]
    return all_thresholds, all_thresholds[IOU_50], all_thresholds[IOU_75]


def _mean(precision: np.ndarray) -> float | None:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None


def _defined(value: float) -> float | None:
    return float(value) if value > -1 else None


def _numbered_names(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        str(index) for index in range(1 + max((label for image in objects for label in image["labels"]), default=-1))
    ]


def _silent(*args: Any) -> None:
    """Suppresses the tables that COCO prints."""
