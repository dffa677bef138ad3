"""Splits a model into the stages of a pipeline, and reports them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from finetune.distributed.engines.pipeline import idle_share
from finetune.models.batchnorm import has_batchnorm
from finetune.models.stages import Stages, split_model
from finetune.tasks.facts import Facts
from finetune.tasks.prepared_task import PreparedTask


def cut_into_stages(prepared: PreparedTask, model: nn.Module, facts: Facts, notify: Callable[[str], None]) -> Stages:
    """The model in as many stages as the plan says; what each holds, and how idle it will be, is reported."""
    task, plan = prepared.task, prepared.plan
    examples = next(iter(prepared.datasets.values()))
    batch = task.collate(prepared.artifacts, [examples[index] for index in range(min(2, len(examples)))])
    stages = split_model(model, lambda module: task.forward(module, batch), plan.machine.pipeline)
    for line in stages.describe():
        notify(line)
    count, idle = plan.batch.accumulation, idle_share(len(stages), plan.batch.accumulation)
    advice = "" if idle <= 0.2 else "; a smaller parallel.micro_batch or a larger global batch makes it less"
    images = f"{count} micro-batch{'es' if count > 1 else ''} of {plan.batch.micro_batch} per step"
    notify(f"pipeline: {images}, so each stage is idle for at least {idle:.0%} of a step{advice}")
    if has_batchnorm(model) and plan.training.batch_norm != "frozen":
        notify("note: BatchNorm computes its statistics over a micro-batch, so its size changes what is learned")
    facts["pipeline"] = f"{len(stages)} stages, {images}, idle for at least {idle:.0%}"
    return stages
