"""COCO's mean average precision, through faster-coco-eval: over all classes, sizes and overlaps, and class by class.

AP as in Lin et al., "Microsoft COCO: Common Objects in Context" (2014) and the COCO detection challenge: the mean over
overlaps (intersection over union) 0.50, 0.55 ... 0.95 and classes, at most 100 detections an image. Sizes in pixels of
the image as it is stored: small below 32 x 32, large from 96 x 96 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import numpy as np

from finetune.metrics.metric import LocalMetric

FIGURES = ("map", "map50", "map75", "map_small", "map_medium", "map_large")  # the first six of COCO's summary
HALF, THREE_QUARTERS = 0, 5  # where 0.50 and 0.75 stand among the overlaps
ALL_SIZES, MOST_DETECTIONS = 0, -1


class Map(LocalMetric):
    """Inputs, one an example. detections: {"boxes": [[x, y, w, h]], "labels": [int], "scores": [float]}.

    objects: {"boxes", "labels", "crowd": [0 or 1]}. Gives map, map50, map75, map_small, map_medium, map_large (None where
    there is no object of that size) and the table per_class_map. No detections at all is 0.
    """

    inputs: ClassVar[tuple[str, ...]] = ("detections", "objects")
    description = "COCO's mean average precision."

    def _feature(self, name: str) -> Any:
        numbers = {"labels": datasets.Sequence(datasets.Value("int64"))}
        numbers["scores" if name == "detections" else "crowd"] = datasets.Sequence(datasets.Value("float64"))
        return {"boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))), **numbers}

    def measure(self, arrays: Mapping[str, np.ndarray], *, labels: list[str] | None = None) -> dict[str, Any]:
        """{"map": number or None, ..., "per_class_map": table}."""
        detections, objects = list(arrays["detections"]), list(arrays["objects"])
        names = labels or _numbered(objects)
        single = [
            label for one in objects for label, crowd in zip(one["labels"], one["crowd"], strict=True) if not crowd
        ]
        counts = np.bincount(np.asarray(single, np.int64), minlength=len(names))
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
        """The first figure alone."""
        return self.measure(dict(zip(self.inputs, inputs, strict=True)), labels=labels)["map"]


def _evaluate(
    detections: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]], num_classes: int
) -> tuple[np.ndarray, Sequence[float]]:
    """(precision [overlaps, recalls, classes, sizes, limits], -1 where undefined; COCO's summary, first six)."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(
        {
            "images": [{"id": image} for image in range(len(objects))],
            "categories": [{"id": index, "name": str(index)} for index in range(num_classes)],
            "annotations": list(_annotations(objects)),
        },
        print_function=_say_nothing,
    )
    found = list(_results(detections))
    if not found:  # COCO wants at least one: a box that meets nothing
        found = [{"image_id": 0, "category_id": 0, "bbox": [0.0, 0.0, 1e-3, 1e-3], "score": 0.0}]
    evaluation = COCOeval_faster(truth, truth.loadRes(found), iouType="bbox", print_function=_say_nothing)
    evaluation.run()
    return np.asarray(evaluation.eval["precision"]), evaluation.stats[: len(FIGURES)]


def _annotations(objects: Sequence[Mapping[str, Any]]) -> Any:
    number = 0
    for image, one in enumerate(objects):
        for box, label, crowd in zip(one["boxes"], one["labels"], one["crowd"], strict=True):
            number += 1
            area = float(box[2] * box[3])
            yield {
                "id": number, "image_id": image, "category_id": int(label), "bbox": list(box), "area": area,
                "iscrowd": int(crowd),
            }  # fmt: skip


def _results(detections: Sequence[Mapping[str, Any]]) -> Any:
    for image, one in enumerate(detections):
        for box, label, score in zip(one["boxes"], one["labels"], one["scores"], strict=True):
            yield {"image_id": image, "category_id": int(label), "bbox": list(box), "score": float(score)}


def _of_class(precision: np.ndarray, index: int) -> tuple[np.ndarray, ...]:
    """Precision of a class over all recalls: at all overlaps, at 0.50, at 0.75."""
    whole = precision[:, :, index, ALL_SIZES, MOST_DETECTIONS]
    return whole, whole[HALF], whole[THREE_QUARTERS]


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _defined(value: float) -> float | None:
    return float(value) if value > -1 else None


def _numbered(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(index) for index in range(1 + max((label for one in objects for label in one["labels"]), default=-1))]


def _say_nothing(*args: Any) -> None:
    """COCO's tables are for a terminal; the figures go to the run."""
