"""What a recipe means, in the simplest code: one process, one example at a time, float64, no engine.

Nothing here assigns, packs, pads, accumulates, reduces, shards or scales. The task's own loss, the order of the examples
and the learning rate are those of the recipe; everything that an engine adds must leave these numbers as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from finetune.data.order.schedule import Schedule
from finetune.data.prepare.added_columns import ExamplesWithColumns
from finetune.data.table import Examples
from finetune.metrics import MetricSet
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.tasks.batch import Batch
from finetune.tasks.prepared_task import PreparedTask
from finetune.tasks.task import ReferenceTask, reference_columns
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
    prepared: PreparedTask,
    model: nn.Module,
    schedule: Schedule,
    *,
    steps: int,
    total_steps: int,
    metrics: Sequence[str],
    dtype: torch.dtype = torch.float64,
) -> Reference:
    """Train `model` for some steps and evaluate it. Statistics of BatchNorm are those of the whole step."""
    task, training, figures = prepared.task, prepared.plan.recipe.training, Reference()
    together = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())
    model = model.to(dtype).train()
    _add_reference_logprobs(prepared, model)
    # What DeepSpeed's kernels do in float32, torch's do in float64 as well.
    name = OPTIMIZERS[training.optimizer].same_update or training.optimizer
    optimizer = make_optimizer(model, training, name)
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for step in range(steps):
        examples = [position for item in schedule.step(step).items for position in item]
        epoch = schedule.step(step).epoch
        loss, units = 0.0, 0
        for batch in _batches(prepared, model, "train", examples, size=len(examples) if together else 1, epoch=epoch):
            loss_sum = task.loss_sum(prepared.artifacts, task.forward(model, batch), batch)
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
        figures.losses.append(loss / max(units, 1))
        figures.norms.append(norm)
    figures.evaluation = _evaluate(prepared, model.eval(), metrics)
    statistics = {name: value for name, value in model.named_buffers() if value.is_floating_point()}
    kept = {**trainable, **{name: value for name, value in statistics.items() if name in model.state_dict()}}
    figures.weights = {name: value.detach() for name, value in kept.items()}
    return figures


@torch.no_grad()
def _evaluate(prepared: PreparedTask, model: nn.Module, metrics: Sequence[str]) -> dict[str, float]:
    task, artifacts = prepared.task, prepared.artifacts
    loss, units = 0.0, 0
    metric_set = MetricSet(metrics, **task.metric_options(artifacts))
    for batch in _batches(prepared, model, "validation", range(len(prepared.datasets["validation"]))):
        outputs = task.forward(model, batch)
        (answer,), (score,) = task.decode(artifacts, outputs, batch), task.score(artifacts, outputs, batch)
        loss, units = loss + score.loss, units + score.weight
        metric_set.add([{**answer.values, **score.reference, "loss": score.loss, "weight": score.weight}])
    return {"loss": loss / max(units, 1), **metric_set.compute().scalars}


@torch.no_grad()
def _add_reference_logprobs(prepared: PreparedTask, model: nn.Module) -> None:
    """What the model says of the examples before it learns, where the task needs that."""
    task, artifacts, datasets = cast(ReferenceTask, prepared.task), prepared.artifacts, prepared.datasets
    names = reference_columns(task, artifacts)
    for split, examples in list(datasets.items()) if names else ():
        model.eval()
        rows = [
            task.reference_values(artifacts, task.forward(model, batch), batch)[0]
            for batch in _batches(prepared, model, split, range(len(examples)))
        ]
        columns = {name: np.array([row[name] for row in rows]) for name in names}
        datasets[split] = ExamplesWithColumns(examples, columns)
        model.train()


def _batches(
    prepared: PreparedTask, model: nn.Module, split: str, positions: Sequence[int], *, size: int = 1, epoch: int = 0
) -> Iterator[Batch]:
    """`size` examples at a time."""
    dtype = next(weight.dtype for weight in model.parameters() if weight.is_floating_point())
    examples: Examples = prepared.datasets[split]
    if hasattr(examples, "epoch"):
        examples.epoch = epoch
    for start in range(0, len(positions), size):
        chosen = [examples[position] for position in positions[start : start + size]]
        batch = prepared.task.collate(prepared.artifacts, chosen)
        batch.inputs, batch.targets = _cast(batch.inputs, dtype), _cast(batch.targets, dtype)
        yield batch


def _cast(fields: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Floating-point tensors as `dtype`. What lies deeper (boxes) stays: losses of detectors take float32 alone."""
    return {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in fields.items()
    }
