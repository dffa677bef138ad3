"""From a recipe to everything that learns or predicts: what the workers of every verb need, in the right order."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.data.sources.tables import open_tables
from finetune.distributed.engine import Engine, open_engine
from finetune.distributed.optimizers import make_deepspeed_optimizer
from finetune.distributed.pipeline import idle_share, open_pipeline
from finetune.distributed.session import Session
from finetune.models.batchnorm import fix_batchnorm_gradients, has_batchnorm
from finetune.models.freeze import freeze_weights
from finetune.models.load import load_config
from finetune.models.stages import Stages, split_model
from finetune.planning.plan import Plan, make_plan
from finetune.planning.shape import hidden_size, layer_elements
from finetune.planning.tensor import check_model
from finetune.recipe.recipe import Recipe
from finetune.recipe.shelf import find_deepspeed_config
from finetune.tasks import TASKS
from finetune.tasks.task import Kit, Task, zero_settings
from finetune.training.parameter_groups import make_optimizer, parameter_groups
from finetune.training.reference_logprobs import add_reference_logprobs
from finetune.units import format_count

Notify = Callable[[str], None]


@dataclass
class TrainingContext:
    """One rank's task, data and engine."""

    session: Session
    plan: Plan
    task: Task
    kit: Kit
    engine: Engine


def plan_here(recipe: Recipe, ranks: int) -> Plan:
    """The plan on this machine. Every rank makes the same one. Raises: UserError for what cannot be trained so."""
    cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    name = recipe.parallel.deepspeed
    config = load_config(recipe.model)
    plan = make_plan(
        recipe,
        TASKS[recipe.task].card,
        ranks=ranks,
        device="cuda" if cuda else "cpu",
        bf16_supported=cuda and torch.cuda.is_bf16_supported(),
        deepspeed_config=None if name == "none" else find_deepspeed_config(name),
        hidden_size=hidden_size(config),
        layer_elements=layer_elements(config),
        zero_settings=zero_settings(TASKS[recipe.task], config),
    )
    check_model(config, recipe.parallel.tensor)
    return plan


def open_session(plan: Plan) -> Session:
    """Join the other ranks. All ranks call it."""
    return Session.open(plan.deepspeed, precision=plan.precision, cpu=plan.device == "cpu", split=plan.split)


def set_up(session: Session, recipe: Recipe, plan: Plan, notify: Notify) -> TrainingContext:
    """Data, model, optimiser, engine. All ranks call it."""
    task = TASKS[recipe.task]
    with session.main_first():
        kit = task.read(recipe, open_tables(recipe, task.card, notify=notify))
    for note in kit.notes:
        notify(note)
    torch.manual_seed(recipe.seed)
    model = task.build(kit)
    fix_batchnorm_gradients(model)
    if count := freeze_weights(model, recipe.model.freeze):
        kit.facts["frozen weights"] = f"{count} tensors"
    if session.world_size > 1 and plan.device == "cuda":
        torch.cuda.empty_cache()
    training = recipe.training
    if plan.optimizer.startswith("deepspeed_"):
        optimizer = make_deepspeed_optimizer(
            plan.optimizer,
            parameter_groups(model, training.weight_decay, training.layer_decay),
            learning_rate=training.learning_rate,
            betas=training.betas,
            epsilon=training.epsilon,
        )
    else:
        optimizer = make_optimizer(model, training, plan.optimizer)
    options: dict[str, Any] = {
        "max_grad_norm": training.max_grad_norm,
        "synchronised": resolve_batch_norm(recipe) == "synchronized",
    }
    engine: Engine
    if plan.pipeline > 1:
        engine = open_pipeline(session, cut_into_stages(task, kit, model, plan, notify), optimizer, **options)
    else:
        engine = open_engine(session, model, optimizer, **options)
    add_reference_logprobs(task, kit, engine, micro_batch=plan.batch.micro_batch, notify=notify)
    return TrainingContext(session, plan, task, kit, engine)


def cut_into_stages(task: Task, kit: Kit, model: nn.Module, plan: Plan, notify: Notify) -> Stages:
    """The model in as many stages as the plan says; what each holds, and how idle it will be, are told."""
    examples = kit.examples["train"]
    batch = task.collate(kit, [examples[index] for index in range(min(2, len(examples)))])
    stages = split_model(model, lambda module: task.forward(module, batch), plan.pipeline)
    for number, stage in enumerate(stages.stages, start=1):
        weights = f"{format_count(stage.weights)} parameters"
        notify(f"stage {number} of {len(stages)}: {stage.label}, {stage.share:.0%} of the cost, {weights}")
    count, idle = plan.batch.accumulation, idle_share(len(stages), plan.batch.accumulation)
    advice = "" if idle <= 0.2 else "; a smaller parallel.micro_batch or a larger global batch makes it less"
    images = f"{count} micro-batch{'es' if count > 1 else ''} of {plan.batch.micro_batch} a step"
    notify(f"pipeline: {images}, so each stage is idle for {idle:.0%} of a step at best{advice}")
    if has_batchnorm(model) and resolve_batch_norm(kit.recipe) != "frozen":
        notify("note: BatchNorm tells its statistics from a micro-batch, so its size changes what is learnt")
    kit.facts["pipeline"] = f"{len(stages)} stages, {images}, idle for {idle:.0%} at best"
    return stages


def resolve_batch_norm(recipe: Recipe) -> str:
    """auto: frozen for pretrained weights (their statistics saw far more data), else synchronized."""
    chosen = recipe.model.batch_norm
    if chosen != "auto":
        return chosen
    return "frozen" if recipe.model.init == "pretrained" else "synchronized"


def quieten(rank: int, logs: Path) -> None:
    """This rank's stderr, and the stdout of all but rank 0, go to logs/rank-*.log: rank 0 speaks."""
    logs.mkdir(parents=True, exist_ok=True)
    log = os.open(rank_log(rank, logs), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 2)
    if rank != 0:
        os.dup2(log, 1)
    os.close(log)
    logging.captureWarnings(True)
    warnings.simplefilter("default")


def rank_log(rank: int, logs: Path) -> Path:
    """Where rank `rank` writes."""
    return logs / f"rank-{rank}.log"
