"""TaskArtifacts: what a task derived from the training data and the recipe, small enough to travel with the model.

With the artifacts and the weights a model can be evaluated, exported and asked for predictions on another machine, after
the training data is gone. They are saved in the run folder (`artifacts/`) and beside the exported model:

    artifacts.json   task, options, classes, settings
    processor/       the tokenizer (with its chat template) or the image processor, as `save_pretrained` writes it
    model/           the model's configuration, so that it can be built without its source

Only JSON and the processor's own files: loading runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.models.inputs import input_kinds, kind_of_processor
from finetune.recipe.card import TaskCard
from finetune.recipe.json_file import read_json
from finetune.recipe.section import Section
from finetune.tasks.classes import Classes

FILE = "artifacts.json"
PROCESSOR = "processor"
MODEL = "model"
FORMAT = 1


@dataclass(frozen=True)
class TaskArtifacts:
    """options: the task's own section of the recipe. processor: the tokenizer or image processor.

    classes: names of the classes and how the data writes them, for tasks that have classes.
    settings: everything else that encoding, the loss and decoding need, as JSON values: length limits, the image size,
    label smoothing, weights of classes.
    """

    task: str
    options: Any
    processor: Any
    classes: Classes | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Names of the classes by index; [] for a task without classes."""
        return self.classes.names if self.classes is not None else []

    def save(self, folder: Path, *, processor: str = PROCESSOR) -> None:
        """Write artifacts.json and the processor's files into its subfolder `processor` ("" for the folder itself)."""
        folder.mkdir(parents=True, exist_ok=True)
        self.processor.save_pretrained(folder / processor)
        content = {
            "format": FORMAT,
            "task": self.task,
            "processor": processor,
            "processor_kind": kind_of_processor(self.processor).processor,
            "options": self.options.model_dump(mode="json"),
            "classes": self.classes.to_dict() if self.classes is not None else None,
            "settings": dict(self.settings),
        }
        beside = folder / f".{FILE}"
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        beside.replace(folder / FILE)


def has_artifacts(folder: Path) -> bool:
    """Whether `folder` holds saved artifacts."""
    return (folder / FILE).is_file()


def load_artifacts(folder: Path, card: TaskCard) -> TaskArtifacts:
    """The artifacts that were saved into `folder` for the task of `card`.

    Raises: UserError if there are none, if they belong to another task, or if they cannot be read.
    """
    path = folder / FILE
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        if content["task"] != card.name:
            raise ValueError(f"they belong to the task {content['task']}, not {card.name}")
        options: Section = card.options(**content["options"])
        classes = Classes.from_dict(content["classes"]) if content["classes"] is not None else None
        if content["processor"] not in ("", PROCESSOR):
            raise ValueError(f"the processor is in {PROCESSOR}/ or beside them, not in {content['processor']!r}")
        processor = _load_processor(folder / content["processor"], content["processor_kind"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the task artifacts cannot be read: {error}",
            where=str(path),
            remedy="They are written when training starts: train with this version, or copy the whole run folder.",
        ) from None
    return TaskArtifacts(card.name, options, processor, classes, content["settings"])


def _load_processor(folder: Path, kind: str) -> Any:
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing")
    if kind not in input_kinds():
        raise ValueError(f"the processor is of the kind {kind!r}; this version knows {', '.join(input_kinds())}")
    return input_kinds()[kind].load(folder)
