"""What a recipe means, in the plainest words: one process, one example at a time, float64, no engine.

Nothing here deals, packs, pads, accumulates, reduces, shards or scales. The task's own loss, the order of the examples
and the learning rate are those of the recipe; everything that an engine adds must leave these numbers as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.data.order.schedule import Schedule
from finetune.data.prepare.added_columns import ExamplesWithColumns
from finetune.data.table import Examples
from finetune.metrics import MetricSet
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.tasks.task import Batch, Kit, Task, reference_columns
from finetune.training.learning_rate import learning_rate
from finetune.training.parameter_groups import make_optimizer


@dataclass
class Reference:
    """losses, norms: of each step. evaluation: "loss" and the metrics after the last one. weights: trainable ones and
    statistics, in the reference's own type.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluation: dict[str, float] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def run_reference(
    task: Task,
    kit: Kit,
    model: nn.Module,
    schedule: Schedule,
    *,
    steps: int,
    total_steps: int,
    metrics: Sequence[str],
    dtype: torch.dtype = torch.float64,
) -> Reference:
    """Train `model` for some steps and evaluate it. Statistics of BatchNorm are those of the whole step."""
    training, found = kit.recipe.training, Reference()
    together = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())
    model = model.to(dtype).train()
    _annotate(task, kit, model)
    # What DeepSpeed's kernels do in float32, torch's do in float64 as well.
    name = OPTIMIZERS[training.optimizer].same_update or training.optimizer
    optimizer = make_optimizer(model, training, name)
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for step in range(steps):
        examples = [position for item in schedule.step(step).items for position in item]
        epoch = schedule.step(step).epoch
        loss, units = 0.0, 0
        for batch in _batches(task, kit, model, "train", examples, size=len(examples) if together else 1, epoch=epoch):
            loss_sum = task.loss_sum(kit, task.forward(model, batch), batch)
            loss_sum.backward()
            loss, units = loss + float(loss_sum.detach()), units + task.weight(batch)
        gradients = [weight.grad.div_(max(units, 1)) for weight in trainable.values() if weight.grad is not None]
        norm = float(torch.stack([gradient.double().norm() for gradient in gradients]).norm())
        if 0 < training.max_grad_norm < norm:
            for gradient in gradients:
                gradient.mul_(training.max_grad_norm / norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total_steps, training) * group.get("lr_scale", 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.losses.append(loss / max(units, 1))
        found.norms.append(norm)
    found.evaluation = _evaluate(task, kit, model.eval(), metrics)
    statistics = {name: value for name, value in model.named_buffers() if value.is_floating_point()}
    kept = {**trainable, **{name: value for name, value in statistics.items() if name in model.state_dict()}}
    found.weights = {name: value.detach() for name, value in kept.items()}
    return found


@torch.no_grad()
def _evaluate(task: Task, kit: Kit, model: nn.Module, metrics: Sequence[str]) -> dict[str, float]:
    loss, units = 0.0, 0
    tally = MetricSet(metrics, **kit.metric_options)
    for batch in _batches(task, kit, model, "validation", range(len(kit.examples["validation"]))):
        for said in task.predict(kit, task.forward(model, batch), batch):
            loss, units = loss + said.loss, units + said.weight
            tally.add([{**said.values, "loss": said.loss, "weight": said.weight}])
    return {"loss": loss / max(units, 1), **tally.compute().scalars}


@torch.no_grad()
def _annotate(task: Any, kit: Kit, model: nn.Module) -> None:
    """What the model says of the examples before it learns, where the task wants that."""
    names = reference_columns(task, kit)
    for split, examples in list(kit.examples.items()) if names else ():
        model.eval()
        rows = [
            task.reference_values(kit, task.forward(model, batch), batch)[0]
            for batch in _batches(task, kit, model, split, range(len(examples)))
        ]
        columns = {name: np.array([row[name] for row in rows]) for name in names}
        kit.examples[split] = ExamplesWithColumns(examples, columns)
        model.train()


def _batches(
    task: Task, kit: Kit, model: nn.Module, split: str, positions: Sequence[int], *, size: int = 1, epoch: int = 0
) -> Iterator[Batch]:
    """`size` examples at a time."""
    dtype = next(weight.dtype for weight in model.parameters() if weight.is_floating_point())
    examples: Examples = kit.examples[split]
    if hasattr(examples, "epoch"):
        examples.epoch = epoch
    for start in range(0, len(positions), size):
        batch = task.collate(kit, [examples[position] for position in positions[start : start + size]])
        batch.inputs, batch.targets = _cast(batch.inputs, dtype), _cast(batch.targets, dtype)
        yield batch


def _cast(fields: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Floating-point tensors as `dtype`. What lies deeper (boxes) stays: losses of detectors take float32 alone."""
    return {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in fields.items()
    }
