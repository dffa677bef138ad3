"""Data to inspect: clean rows of every kind of task, into which tests put one fault each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.app.inspect import open_inspection, padding_of
from finetune.app.machine import plan_alone
from finetune.data.prepare.progress import SilentProgress
from finetune.inspection.checks import run_checks
from finetune.inspection.findings import Finding
from finetune.inspection.inspection import Inspection
from finetune.inspection.report import InspectionReport, make_report
from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS
from tests.contract.examples import EXAMPLES

Rows = list[dict[str, Any]]
TRAIN, VALIDATION = 30, 12
_WORDS = [
    "river",
    "apple",
    "stone",
    "city",
    "music",
    "light",
    "paper",
    "small",
    "large",
    "quick",
    "slow",
    "name",
    "write",
    "count",
    "find",
    "draw",
    "explain",
    "words",
    "green",
    "house",
    "water",
    "bread",
    "cloud",
    "winter",
    "summer",
    "letter",
    "number",
    "story",
    "friend",
    "table",
    "window",
    "garden",
    "market",
    "silver",
    "thunder",
    "harbor",
    "meadow",
]


def sentence(seed: int, count: int = 12) -> str:
    """Words that no other seed gives in this order."""
    return " ".join(random.Random(seed).choices(_WORDS, k=count))


def chats(count: int, first: int) -> Rows:
    """Conversations of one turn each."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Please {sentence(first + index)}?"},
                {"role": "assistant", "content": f"Well, {sentence(1000 + first + index)}."},
            ]
        }
        for index in range(count)
    ]


def reviews(count: int, first: int) -> Rows:
    return [{"text": sentence(first + index), "label": ("good", "bad")[index % 2]} for index in range(count)]


def entities(count: int, first: int) -> Rows:
    rows = []
    for index in range(count):
        words = sentence(first + index).split()
        rows.append({"tokens": words, "tags": ["B-per", "I-per", *["O"] * (len(words) - 3), "B-loc"]})
    return rows


def pairs(count: int, first: int) -> Rows:
    return [
        {"prompt": sentence(first + i), "chosen": sentence(1000 + first + i), "rejected": sentence(2000 + first + i)}
        for i in range(count)
    ]


def translations(count: int, first: int) -> Rows:
    return [{"source": sentence(first + index), "target": sentence(1000 + first + index)} for index in range(count)]


def pictures(folder: Path, count: int, first: int) -> Rows:
    rows, rng = [], np.random.default_rng(first)
    for index in range(first, first + count):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (14, 18, 3), dtype=np.uint8)).save(path)
        rows.append({"image": str(path), "label": ["low", "high"][index % 2]})
    return rows


def scenes(folder: Path, count: int, first: int) -> Rows:
    rows = pictures(folder, count, first)
    for index, row in enumerate(rows):
        kind = row.pop("label")
        row["objects"] = {"bbox": [[2, 3, 8 + index % 4, 9]], "category": [kind]}
    return rows


class SilentInspection(SilentProgress):
    """Shows nothing."""

    def tick(self, what: str, done: int, total: int) -> None: ...


@dataclass
class Data:
    """train and validation rows, to be changed by a test before `inspect`."""

    folder: Path
    task: str
    train: Rows
    validation: Rows
    options: dict[str, Any]
    model: dict[str, Any]
    on_bad_row: str = "error"

    def write(self) -> dict[str, Any]:
        """Write the files; the recipe as plain values."""
        for name, rows in (("train", self.train), ("validation", self.validation)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (self.folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        files = {name: str(self.folder / f"{name}.jsonl") for name in ("train", "validation")}
        return {
            "name": "inspected",
            "task": self.task,
            "model": self.model,
            "data": {**files, "on_bad_row": self.on_bad_row},
            "options": self.options,
            "training": {"precision": "fp32", "global_batch": 8},
            "parallel": {"deepspeed": "none"},
        }

    def inspection(self) -> Inspection:
        recipe = recipe_type(CARDS[self.task])(**self.write())
        return open_inspection(plan_alone(recipe), SilentInspection())

    def findings(self) -> list[Finding]:
        return run_checks(self.inspection())

    def report(self, **options: Any) -> InspectionReport:
        inspection = self.inspection()
        defaults: dict[str, Any] = {"split": "train", "count": 1, "row": None, "padding": padding_of(inspection)}
        return make_report(inspection, **{**defaults, **options})


_TEXTS: Mapping[str, Callable[[int, int], Rows]] = {
    "causal_lm": chats,
    "text_classification": reviews,
    "sequence_regression": lambda count, first: [
        {"text": sentence(first + index), "label": index / 7} for index in range(count)
    ],
    "token_classification": entities,
    "preference": pairs,
    "reward_model": pairs,
    "seq2seq": translations,
}
_IMAGES = {"image_classification": pictures, "object_detection": scenes}
LIMITS = {
    "seq2seq": {"max_source_length": 120, "max_target_length": 120},
    "image_classification": {"image_size": 16},
    "object_detection": {"image_size": 64},
}


def clean(folder: Path, task: str, **options: Any) -> Data:
    """Data without a fault. options: of the recipe."""
    model = next(example.model for example in EXAMPLES if example.task == task)
    if task in _TEXTS:
        train, validation = _TEXTS[task](TRAIN, 1), _TEXTS[task](VALIDATION, 500)
    else:
        train, validation = _IMAGES[task](folder, TRAIN, 0), _IMAGES[task](folder, VALIDATION, 500)
    given = {**LIMITS.get(task, {"max_length": 120}), **options}
    return Data(folder, task, train, validation, given, dict(model))


def rows_of(findings: Sequence[Finding], kind: str) -> list[tuple[str, int | None]]:
    """(split, row id) of each row of the findings of a kind."""
    return [(row.split, row.id) for one in findings if one.kind == kind for row in one.rows]
