"""A model that is asked in stages: each rank of a replica holds some blocks of it, as in the pipeline that trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from finetune.app.model_sources import FoundModel
from finetune.distributed.session import Session
from finetune.distributed.staged_model import StagedModel
from finetune.errors import UserError
from finetune.models.parts import EXAMPLES, Parts, split_parts
from finetune.models.stages import Stages, split_model
from finetune.planning.plan import Plan
from finetune.tasks import CARDS
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Batch
from finetune.tasks.task import Task

OPTION = "--stages"
_EXAMPLES = 2  # BatchNorm needs two where blocks are found


def check_stages(found: FoundModel, plan: Plan) -> None:
    """Raises: UserError for a model of a task that is not answered in stages, or with quantized weights."""
    if not CARDS[plan.recipe.task].model.stages:
        others = ", ".join(name for name, card in CARDS.items() if card.model.stages)
        raise UserError(
            f"a model of the task {plan.recipe.task} is not answered in stages, as those of {others} are",
            where=OPTION,
            remedy="Leave it out, or spread whole layers over GPUs (--layers), or slices of them over ranks (--slices).",
        )
    if plan.recipe.model.quantization != "none":
        raise UserError(
            "quantized weights cannot be split into stages",
            where=found.name,
            remedy=f"Leave out {OPTION} or the quantization.",
        )


def open_stages(
    task: Task, artifacts: TaskArtifacts, module: nn.Module, session: Session, count: int
) -> tuple[nn.Module, list[str]]:
    """(the model, of which this rank holds one stage; what each stage is, for people). All ranks call it.

    module: whole, on the CPU. The split follows from the model and the size of its images alone, so that it is the same on
    all ranks and at every start.
    Raises: UserError if the model cannot be split so.
    """
    stages = SPLITS[task.card.model.stages](task, artifacts, module.eval(), count)
    return StagedModel(stages, session).eval(), stages.describe()


def _split_blocks(task: Task, artifacts: TaskArtifacts, module: nn.Module, count: int) -> Stages:
    """As the pipeline that trains splits it."""
    batch = _made_up(task, artifacts)
    module.requires_grad_(True)  # by gradients, blocks are distinguished from what is computed beside them
    stages = split_model(module, lambda model: task.forward(model, batch), count, key=OPTION)
    module.requires_grad_(False)
    module.eval()
    _check_activations(stages, partial(task.forward, module, batch))
    return stages


def _split_parts(task: Task, artifacts: TaskArtifacts, module: nn.Module, count: int) -> Parts:
    """Between modules that pass on several tensors, too."""
    module.requires_grad_(False)
    batches = {examples: _made_up(task, artifacts, examples) for examples in (1, EXAMPLES)}
    return split_parts(module, lambda model, examples: task.forward(model, batches[examples]), count, key=OPTION)


SPLITS: dict[str, Callable[[Task, TaskArtifacts, nn.Module, int], Stages | Parts]] = {
    "blocks": _split_blocks,
    "parts": _split_parts,
}
"""`ModelSpec.stages` -> how a model is split."""


def _made_up(task: Task, artifacts: TaskArtifacts, count: int = _EXAMPLES) -> Batch:
    """Images of noise, of the size that the model takes."""
    height, width = artifacts.settings["image_size"]
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)) for _ in range(count)]
    encoded: Any = task.encode(artifacts, [{"image": image} for image in images], with_targets=False)
    return task.collate(artifacts, [{"id": number, **example} for number, example in enumerate(encoded)])


def _check_activations(stages: Stages, call: Any) -> None:
    """Raises: UserError unless what a stage passes on is [examples, ...], so that a batch can be cut between examples."""
    given: Any = None
    with torch.no_grad():
        for number in range(len(stages) - 1):
            given = stages.run(number, given, call)
            if len(given) != _EXAMPLES:
                raise UserError(
                    f"of {_EXAMPLES} images, stage {number + 1} passes on a tensor of the shape {list(given.shape)}, which "
                    "is not one entry for each image",
                    where=OPTION,
                    remedy=f"Remove {OPTION}: this model cannot be split so.",
                )
