"""What an example costs, and how much a chunk may: known from the artifacts alone, before there is a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.task import Task

TOKENS = {"cpu": 1_024, "cuda": 32_768}  # of a chunk, the padding not counted
PIXELS = {"cpu": 2**19, "cuda": 2**23}
TEXTS = ("input_ids", "rejected_input_ids")  # keys of token ids that the model reads
REPLY_LENGTHS = ("reply_length", "max_target_length")  # options: tokens that the model may write


@dataclass(frozen=True)
class ExampleCost:
    """The cost of an example, in tokens or pixels. Picklable.

    pixels: of each image, which all have one size; 0 for texts. written: tokens that may be written in reply.
    """

    pixels: int = 0
    written: int = 0

    @classmethod
    def of(cls, task: Task, artifacts: TaskArtifacts) -> ExampleCost:
        """For the examples of a task, encoded or not."""
        if task.card.rows.image_role:
            height, width = artifacts.settings["image_size"]
            return cls(pixels=int(height) * int(width))
        options = artifacts.options
        lengths = [int(getattr(options, name)) for name in REPLY_LENGTHS if hasattr(options, name)]
        return cls(written=lengths[0] if lengths and hasattr(task, "generate") else 0)

    def __call__(self, example: dict[str, Any]) -> int:
        if self.pixels:
            return self.pixels
        return sum(len(example[key]) for key in TEXTS if key in example) + self.written


def chunk_budget(task: Task, device: str) -> int:
    """The cost of a chunk on a kind of device, "cpu" or "cuda", whatever the number of ranks."""
    budgets = PIXELS if task.card.rows.image_role else TOKENS
    return budgets.get(device, budgets["cuda"])
