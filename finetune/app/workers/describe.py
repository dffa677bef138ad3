"""Facts of a training for people, and the bytes that each rank holds."""

from __future__ import annotations

import math
from typing import Any

from finetune.app.workers.context import TrainingContext
from finetune.app.workers.distributions import class_balance, length_histograms
from finetune.distributed.tensor_parallel import whole_shape
from finetune.models.quantized import stored_bytes
from finetune.planning.deepspeed import offloads
from finetune.planning.engine import deepspeed_name
from finetune.planning.memory import StateBytes, state_bytes


def forecast_bytes(context: TrainingContext) -> StateBytes:
    """Bytes of weights, gradients and optimizer state that a rank holds, without activations."""
    local = [p for p in context.engine.module.parameters() if not p.is_meta]  # without a pipeline's other stages
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in local]
    plan, config = context.plan, context.plan.deepspeed
    quantized = plan.recipe.model.quantization != "none"
    return state_bytes(
        sum(size for size, _ in sizes),
        sum(size for size, trained in sizes if trained),
        ranks=context.session.replicas,
        stage=plan.stage,
        precision=plan.precision,
        optimizer=plan.optimizer,
        engine=plan.engine == "deepspeed" or plan.machine.master_weights,
        offload_optimizer=offloads(config),
        offload_param=offloads(config, "param"),
        frozen_bytes=stored_bytes(context.engine.module) if quantized else None,
    )


def count_parameters(context: TrainingContext) -> tuple[int, int]:
    """All, and those that are trained, of the whole model."""
    sizes = [(math.prod(whole_shape(p)), p.requires_grad) for p in context.engine.module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def describe(context: TrainingContext) -> dict[str, Any]:
    """What is trained, on what, by how many."""
    parameters, trainable = count_parameters(context)
    plan, recipe = context.plan, context.plan.recipe
    tensor = f", tensor {plan.machine.tensor}" if plan.machine.tensor > 1 else ""
    return {
        "model": recipe.model.source,
        "task": recipe.task,
        "parameters": parameters,
        "trainable_parameters": trainable,
        "ranks": context.session.world_size,
        "device": plan.device,
        "engine": plan.engine_name,
        "deepspeed": (deepspeed_name(recipe.parallel) or "none") + tensor,
        "precision": plan.precision,
        **({"float8": plan.training.float8} if plan.training.float8 != "none" else {}),
        **({"kernels": plan.machine.kernels} if plan.machine.kernels != "none" else {}),
        **({"compile": plan.machine.compile} if plan.machine.compile != "none" else {}),
        "unit": context.task.card.loss.unit,
        "global_batch": recipe.training.global_batch,
        "micro_batch": plan.batch.micro_batch,
        "accumulation": plan.batch.accumulation,
        "examples": {split: len(examples) for split, examples in context.datasets.items()},
        **context.facts.simple(),
        "lengths": length_histograms(context.datasets),
        "class_balance": class_balance(context.facts.values, context.datasets),
    }
