"""The ranks of `finetune verify`: the same steps under one layout after another, and once as the reference does them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from finetune.app.opening import open_recipe
from finetune.app.train import notify
from finetune.app.workers.context import open_session, plan_alone, plan_here, quieten, set_up
from finetune.app.workers.train import SilentListener
from finetune.data.sources.tables import open_tables
from finetune.distributed.env import from_environ
from finetune.distributed.full_state import consolidate
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.process_state import ProcessState, meet
from finetune.errors import UserError
from finetune.metrics.catalogue import needs_text
from finetune.models.batchnorm import fix_batchnorm_gradients
from finetune.models.config import load_config
from finetune.models.freeze import freeze_weights
from finetune.models.shrink import shrunken, without_dropout
from finetune.planning.plan import Plan
from finetune.planning.shape import cost_model
from finetune.recipe.recipe import Recipe
from finetune.tasks import TASKS
from finetune.tasks.task import Kit
from finetune.training.loop import Loop, OutputDirs
from finetune.training.microbatch_planner import MicroBatchPlanner
from finetune.training.reference_loop import run_reference
from finetune.training.stop import StopRequest

REFERENCES = {"reference": torch.float64, "reference32": torch.float32}


@dataclass(frozen=True)
class Variant:
    """One layout. micro_batch: examples a forward pass on one rank. tensor: ranks that share each layer's matrices;
    pipeline: stages of the model.
    """

    name: str
    ranks: int
    deepspeed: str
    micro_batch: int
    tensor: int = 1
    pipeline: int = 1


@dataclass(frozen=True)
class Figures:
    """What a variant gave. refused: why the layout is none for this recipe; then the rest is empty."""

    name: str
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluation: dict[str, float] = field(default_factory=dict)
    digest: str = ""
    refused: str = ""


def make_variants(
    global_batch: int, ranks: int, *, splits: bool, tensor: int = 1, pipeline: bool = False
) -> list[Variant]:
    """Every way to share out a step. splits: also in several forward passes (BatchNorm is not the same then). tensor:
    the recipe's own, one more layout where that many ranks share the layers. pipeline: also with the model's layers
    shared out over two ranks.
    """
    share = ceil(global_batch / ranks)
    found = [Variant("1 rank", 1, "none", global_batch)]
    if splits:
        found.append(Variant("1 rank, accumulation", 1, "none", ceil(global_batch / 4)))
    found.append(Variant(f"{ranks} ranks", ranks, "none", share))
    if splits:
        found.append(Variant(f"{ranks} ranks, accumulation", ranks, "none", ceil(share / 3)))
    if pipeline and ranks > 1:
        found.append(Variant("2 stages", 2, "none", ceil(global_batch / 4) if splits else global_batch, pipeline=2))
    size = ceil(share / 2) if splits else share
    found += [Variant(f"{ranks} ranks, ZeRO-{stage}", ranks, f"zero{stage}", size) for stage in range(4)]
    if tensor > 1 and ranks % tensor == 0:
        found.append(Variant(f"{ranks} ranks, tensor parallel {tensor}", ranks, "zero1", global_batch, tensor))
    return found


def work(folder: Path) -> None:
    """On each rank: what `verify` wrote into `folder` is carried out, and the figures are written beside it."""
    env = from_environ()
    assert env is not None
    rank, ranks = env.rank, env.world_size
    quieten(rank, Path(os.environ[SUPERVISED]))
    asked = json.loads((folder / "verify.json").read_text(encoding="utf-8"))
    recipe = open_recipe(str(folder / "recipe.yaml")).recipe
    process_state, sizes = ProcessState(), folder / "model.json"
    meet(folder / "meeting", rank, ranks)
    if rank == 0:
        _write(sizes, _choose_model(recipe, full=asked["full"]))
    process_state.wait()
    process_state.reset()
    recipe = _with_model(recipe, json.loads(sizes.read_text(encoding="utf-8")))
    if rank == ranks - 1:
        for name in REFERENCES:
            _write(folder / f"{name}.json", asdict(reference_figures(recipe, name, folder, asked["steps"])))
    pipeline = "pipeline" in TASKS[recipe.task].card.splits and not recipe.training.optimizer.startswith("deepspeed_")
    variants = make_variants(
        recipe.training.global_batch,
        ranks,
        splits=not has_batchnorm(recipe),
        tensor=recipe.parallel.tensor,
        pipeline=pipeline,
    )
    for number, variant in enumerate(variants):
        if rank >= variant.ranks:
            continue
        if rank == 0:
            notify(f"{number + 1} of {len(variants)}: {variant.name}")
        meet(folder / f"meeting-{number}", rank, variant.ranks)
        figures = run_variant(recipe, variant, folder, asked["steps"])
        process_state.reset()
        if rank == 0:
            _write(folder / f"variant-{number}.json", asdict(figures))


def run_variant(recipe: Recipe, variant: Variant, folder: Path, steps: int) -> Figures:
    """Some steps and an evaluation under one layout, through the loop that trains. Its ranks call it."""
    layout: dict[str, Any] = {"deepspeed": variant.deepspeed, "micro_batch": variant.micro_batch}
    layout |= {"rank_speed": "equal", "tensor": variant.tensor, "pipeline": variant.pipeline}
    recipe = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=layout)})
    try:
        plan = plan_here(recipe, variant.ranks)
    except UserError as error:
        return Figures(variant.name, refused=error.what)
    session = open_session(plan)
    try:
        context = set_up(session, recipe, plan, lambda text: None)
    except UserError as error:
        if variant.pipeline == 1:
            raise
        return Figures(variant.name, refused=error.what)  # the model cannot be cut: all ranks say so
    output_dirs = OutputDirs(folder / "checkpoints", folder / "predictions")
    loop = Loop(
        context.task,
        context.kit,
        context.engine,
        micro_batch=plan.batch.micro_batch,
        cost=cost_model(load_config(recipe.model)),
        output_dirs=output_dirs,
        listener=SilentListener(),
        stop=StopRequest(),
    )
    loop.metrics = metrics_of(plan)
    losses, norms = [], []
    for _, (step, own) in zip(range(steps), loop._batches(), strict=False):
        result = loop._step(step, own)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    evaluation = loop.measure("validation").scalars
    loop.saver.close()
    state = consolidate(context.engine)
    digest = (
        save_weights(_learnt(context.engine.module, state), folder / f"{variant.name}.safetensors") if state else ""
    )
    session.wait()
    return Figures(variant.name, losses, norms, evaluation, digest)


def reference_figures(recipe: Recipe, name: str, folder: Path, steps: int) -> Figures:
    """The same by one process, in plain words. Any one rank calls it."""
    task, kit = TASKS[recipe.task], _read(recipe)
    torch.manual_seed(recipe.seed)
    model = task.build(kit)
    fix_batchnorm_gradients(model)
    freeze_weights(model, recipe.model.freeze)
    schedule = MicroBatchPlanner(kit, cost_model(load_config(recipe.model)), ranks=1, micro_batch=1).schedule(
        recipe, kit.plan.training.balance_window
    )
    found = run_reference(
        task,
        kit,
        model,
        schedule,
        steps=steps,
        total_steps=kit.plan.training.total_steps(schedule.steps_per_epoch),
        metrics=metrics_of(kit.plan),
        dtype=REFERENCES[name],
    )
    digest = save_weights(found.weights, folder / f"{name}.safetensors")
    return Figures(name, found.losses, found.norms, found.evaluation, digest)


def metrics_of(plan: Plan) -> list[str]:
    """Those of the plan, but for metrics of generated texts: at a near tie, rounding may choose another word."""
    return [name for name in plan.training.metrics if not needs_text([name])]


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> str:
    """Write them; 12 hex digits of their SHA-256 as float32, by name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].float().contiguous().numpy().tobytes())
    save_file({name: weight.contiguous().clone() for name, weight in weights.items()}, path)
    return digest.hexdigest()[:12]


def has_batchnorm(recipe: Recipe) -> bool:
    """Whether statistics of a batch are part of the model; frozen ones are not."""
    kit = _read(recipe)
    if kit.plan.training.batch_norm == "frozen":
        return False
    model = TASKS[recipe.task].build(kit)
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())


def _learnt(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trainable weights and statistics, as the reference keeps them."""
    names = {name for name, weight in module.named_parameters() if weight.requires_grad}
    names |= {name for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return {name: state[name] for name in names & state.keys()}


def _choose_model(recipe: Recipe, *, full: bool) -> dict[str, Any]:
    """`model:` with dropout off and, unless full, the smallest model of the architecture that trains."""
    config = load_config(recipe.model).to_dict()
    off = without_dropout(config)
    if recipe.model.quantization != "none":
        notify("the base is not quantised here: its rounding is far coarser than what is compared")
    whole = {"quantization": "none"}
    if full:
        return {**whole, "config": {**recipe.model.config, **off}}
    source = recipe.model.source
    for smaller in shrunken(config):
        asked: dict[str, Any] = {**whole, "config": {**recipe.model.config, **smaller, **off}}
        if smaller and recipe.model.init == "pretrained":
            asked |= {"init": "config", "tokenizer": recipe.model.tokenizer or source}
            asked |= {"processor": recipe.model.processor or source}
        if not smaller or _trains(_with_model(recipe, asked)):
            return asked
    raise AssertionError("the last candidate changes nothing")


def _trains(recipe: Recipe) -> bool:
    """Whether one example goes forward and back. An architecture may refuse sizes in its own ways."""
    task = TASKS[recipe.task]
    try:
        kit = _read(recipe)
        model = task.build(kit)
        batch = task.collate(kit, [kit.examples["train"][0], kit.examples["train"][1]])
        task.loss_sum(kit, task.forward(model, batch), batch).backward()
    except Exception as error:
        notify(f"not shrunk so far ({type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''})")
        return False
    return True


def _with_model(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def _read(recipe: Recipe) -> Kit:
    task = TASKS[recipe.task]
    return task.read(plan_alone(recipe), open_tables(recipe, task.card))


def _write(path: Path, value: Any) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(value), encoding="utf-8")
    beside.replace(path)
