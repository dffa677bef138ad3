"""`data.capacity: auto` on this machine: measured once the engine is there, before the plan is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from finetune.app.workers.context import TrainingContext
from finetune.app.workers.describe import forecast_bytes
from finetune.terminal import phase
from finetune.training.capacity_probe import CapacityProbe


def settle_capacity(context: TrainingContext, notify: Callable[[str], None]) -> TrainingContext:
    """The context with a plan that says how many tokens micro-batches hold here, where that is to be measured. All ranks call
    it.
    """
    plan, first = context.plan, int(context.artifacts.settings.get("capacity", 0))
    limit = plan.machine.capacity_limit
    if not first or 2 * first > limit:
        return context
    probe = CapacityProbe(
        context.task,
        context.artifacts,
        context.engine,
        context.datasets["train"],
        seed=plan.recipe.seed,
        global_batch=plan.recipe.training.global_batch,
        state_bytes=forecast_bytes(context).on_device,
    )
    with phase("measuring how many tokens a micro-batch should hold (data.capacity: auto)", notify):
        choice = probe.choose(first=first, limit=limit)
    notify(choice.in_words())
    context.facts["micro_batches"] = choice.in_words()
    return replace(context, plan=replace(plan, machine=replace(plan.machine, capacity=choice.capacity)))
