"""From a plan to everything that learns or predicts: what the ranks of every verb need, in the right order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune.app.workers.preparing import PreparedData
from finetune.app.workers.stages import cut_into_stages
from finetune.distributed.engines.engine import Engine, EngineOptions
from finetune.distributed.engines.registry import open_engine
from finetune.distributed.prebuild import announce_builds, of_optimizer
from finetune.distributed.process_group import sharing_note
from finetune.distributed.session import Session
from finetune.distributed.stop_agreement import Asked
from finetune.errors import UserError
from finetune.events import Listener
from finetune.inference.evaluation import Evaluator
from finetune.inference.reference_logprobs import add_reference_logprobs
from finetune.models.batchnorm import fix_batchnorm_gradients
from finetune.models.config import load_config
from finetune.models.freeze import freeze_weights
from finetune.models.training_layers import convert_layers
from finetune.planning.plan import Plan
from finetune.planning.shape import cost_model
from finetune.tasks import load_task
from finetune.tasks.facts import Facts
from finetune.tasks.prepared_task import PreparedTask
from finetune.terminal import phase, print_line
from finetune.training.loop import Loop, OutputDirs
from finetune.training.parameter_groups import make_optimizer
from finetune.training.step_source import ScheduledSource
from finetune.training.stop import StopRequest

Notify = Callable[[str], None]


@dataclass(frozen=True)
class TrainingContext(PreparedTask):
    """A prepared task under one rank's engine. facts: for people."""

    session: Session
    facts: Facts
    engine: Engine


def open_session(plan: Plan) -> Session:
    """Join the other ranks. All ranks call it."""
    options: dict[str, Any] = {
        "precision": plan.precision,
        "cpu": plan.device == "cpu",
        "replica_size": plan.replica_size,
    }
    return Session.open(plan.deepspeed, **options, notify=print_line)


def set_up(
    session: Session,
    plan: Plan,
    data: PreparedData,
    notify: Notify,
    *,
    before: Callable[[nn.Module], None] | None = None,
    asked_to_stop: Asked | None = None,
) -> TrainingContext:
    """Model, optimizer, engine, over data that was prepared before the session was opened. All ranks call it.

    before: called with the model before an engine wraps it. asked_to_stop: whether this rank was; None: nobody can ask.

    Raises: UserError if the machines have prepared different data; Stopped while the reference of preferences is computed.
    """
    prepared, facts = PreparedTask(load_task(plan.recipe.task), plan, data.artifacts, data.datasets), data.facts
    check_same_data(session, data)
    sharing = [sharing_note()] if session.device.type == "cuda" else []
    for note in (*filter(None, sharing), *data.messages, *plan.notes, *facts.notes):
        notify(note)
    engine = build_engine(session, prepared, facts, notify, before=before)
    add_reference_logprobs(prepared, engine, notify=notify, asked_to_stop=asked_to_stop)
    return TrainingContext(prepared.task, plan, data.artifacts, data.datasets, session, facts, engine)


def check_same_data(session: Session, data: PreparedData) -> None:
    """All ranks call it. Raises: UserError if the content of their data differs, or the examples that were made of it."""
    contents = {name: record["content"] for name, record in data.data.items()}
    found = session.all_gather((contents, {name: len(examples) for name, examples in data.datasets.items()}))
    different = [rank for rank, other in enumerate(found) if other != found[0]]
    if different:
        theirs, ours = ({**other[1], **other[0]} for other in (found[different[0]], found[0]))
        splits = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        which = f" ({', '.join(splits)})" if splits else ", although the files have the same content"
        raise UserError(
            f"the prepared data of rank {different[0]} differs from that of rank 0{which}",
            where="data",
            remedy="Copy the same data files to all machines, or put them on storage that they share.",
        )


def build_engine(
    session: Session,
    prepared: PreparedTask,
    facts: Facts,
    notify: Notify,
    *,
    trains: bool = True,
    before: Callable[[nn.Module], None] | None = None,
) -> Engine:
    """The model under the plan's engine. All ranks call it. trains: with gradients and an optimizer. before: called with
    the model before the engine wraps it.
    """
    plan, recipe = prepared.plan, prepared.plan.recipe
    torch.manual_seed(recipe.seed)
    with phase("loading the model", notify):
        model = prepared.task.build(plan, prepared.artifacts, facts)
    fix_batchnorm_gradients(model)
    if count := freeze_weights(model, recipe.model.freeze):
        facts["frozen weights"] = f"{count} tensors"
    if before is not None:
        before(model)
    if session.world_size > 1 and plan.device == "cuda":
        torch.cuda.empty_cache()

    def optimizer_over(module: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(module, recipe.training, plan.optimizer)

    options = EngineOptions(
        max_grad_norm=recipe.training.max_grad_norm,
        synchronized=plan.training.batch_norm == "synchronized",
        cut=lambda whole: cut_into_stages(prepared, whole, facts, notify),
        master_weights=plan.machine.master_weights,
    )
    announce_builds(of_optimizer(plan.optimizer) if trains else (), notify)
    with phase(f"starting the engine ({plan.engine_name})", notify):
        engine = open_engine(plan.engine, session, model, optimizer_over if trains else None, options)
    if trains:
        found = convert_layers(
            engine.module,
            notify if session.is_main else print_line,  # other ranks report to their logs
            float8=plan.training.float8,
            checkpointing=recipe.model.gradient_checkpointing,
            compiled=plan.machine.compile == "layers",
            accumulated=engine.accumulates_in_products and session.device.type == "cuda",
            emulate=plan.device == "cpu",
        )
        facts.update(found)
    return engine


def make_loop(
    context: TrainingContext,
    output_dirs: OutputDirs,
    listener: Listener,
    stop: StopRequest,
    metrics: list[str] | None = None,
) -> Loop:
    """The loop over a context. metrics: in place of the plan's."""
    plan, recipe = context.plan, context.plan.recipe
    cost = cost_model(load_config(recipe.model))
    evaluator = Evaluator(
        context.task,
        plan,
        context.artifacts,
        context.engine,
        cost,
        list(plan.training.metrics) if metrics is None else metrics,
        asked_to_stop=lambda: stop.requested,
    )
    return Loop(
        context,
        context.engine,
        ScheduledSource.of(context, context.engine, cost),
        evaluator,
        output_dirs=output_dirs,
        listener=listener,
        stop=stop,
    )
