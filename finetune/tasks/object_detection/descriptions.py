"""What people read and see of detections: counts of a split, classes of an image, an image with its boxes drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import SHOWN
from finetune.data.table import Table
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer
from finetune.tasks.facts import Facts
from finetune.tasks.vision.drawing import draw_detections
from finetune.units import format_number

CLEAR = 0.5  # score from which a detection is shown to people


def describe_split(facts: Facts, table: Table, checked: Any, names: Sequence[str], size: str) -> None:
    """Counts of images and boxes, and the boxes that were left out, each with its place."""
    boxes, empty, bad = Counter[str](), 0, []
    for example in checked:
        boxes.update(names[int(label)] for label in example["labels"])
        empty += not len(example["labels"])
        bad += [f"{table.place(example['id'])}, annotation {name}: {why}" for name, why in example["bad"]]
    skipped = f", {format_number(checked.skipped_count, 'bad row')} skipped" if checked.skipped_count else ""
    facts[table.name] = (
        f"{len(checked):,} images ({empty:,} without boxes), {boxes.total():,} boxes{skipped}; seen as {size}"
    )
    facts[f"{table.name} classes"] = dict(sorted(boxes.items()))
    if bad:
        more = f"\n  ... and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        listed = "".join(f"\n  {line}" for line in bad[:SHOWN])
        facts[f"{table.name} boxes left out"] = f"{len(bad):,}{listed}{more}"
        boxes_left_out = "1 box" if len(bad) == 1 else f"{len(bad):,} boxes"
        facts.notes.append(f"{table.name}: {boxes_left_out} left out{listed}{more}")


def count_clear(artifacts: TaskArtifacts, detections: Mapping[str, Any]) -> str:
    """The classes of what was found, for people: those of a score of CLEAR or more."""
    pairs = zip(detections["labels"], detections["scores"], strict=True)
    return count_classes(artifacts, [label for label, score in pairs if score >= CLEAR])


def count_classes(artifacts: TaskArtifacts, labels: Sequence[int]) -> str:
    """[0, 2, 0] -> "2 circle, 1 triangle"."""
    counts = Counter(labels)
    return ", ".join(f"{counts[label]} {artifacts.labels[label]}" for label in sorted(counts)) or "(nothing)"


def draw_answer(artifacts: TaskArtifacts, answer: Answer, example: dict[str, Any]) -> Any:
    """The image that the model saw, with the boxes that are there and those that it found."""
    return draw_detections(
        example["pixel_values"],
        artifacts.processor,
        example["size"],
        example["objects"],
        answer.values["detections"],
        artifacts.labels,
        CLEAR,
    )
