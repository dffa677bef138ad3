"""The ranks of `finetune verify`: the same steps under one layout after another, and once as the reference does them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from finetune.app.machine import plan_here
from finetune.app.opening import open_recipe
from finetune.app.workers.context import make_loop, open_session, set_up
from finetune.app.workers.layouts import Variant, make_variants
from finetune.app.workers.logs import redirect_output
from finetune.app.workers.preparing import ready
from finetune.app.workers.small_model import choose_model, prepare_alone, with_model
from finetune.distributed.env import from_environ
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.process_state import ProcessState, meet
from finetune.errors import UserError
from finetune.events import SilentListener
from finetune.metrics.catalogue import needs_text
from finetune.models.batchnorm import fix_batchnorm_gradients
from finetune.models.config import load_config
from finetune.models.freeze import freeze_weights
from finetune.planning.plan import Plan
from finetune.planning.shape import cost_model
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.recipe import Recipe
from finetune.tasks import CARDS
from finetune.tasks.facts import Facts
from finetune.terminal import print_line
from finetune.training.loop import OutputDirs
from finetune.training.microbatch_planner import MicroBatchPlanner
from finetune.training.reference_loop import run_reference
from finetune.training.stop import StopRequest

REFERENCES = {"reference": torch.float64, "reference32": torch.float32}


@dataclass(frozen=True)
class Figures:
    """What a variant gave. refused: why the layout is none for this recipe; then the rest is empty."""

    name: str
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluation: dict[str, float] = field(default_factory=dict)
    digest: str = ""
    refused: str = ""


def work(*, recipe: str, **options: Any) -> None:
    """On each rank: what `verify` wrote beside the recipe is carried out, and the figures are written there."""
    folder = Path(recipe).parent
    env = from_environ()
    assert env is not None
    rank, ranks = env.rank, env.world_size
    redirect_output(rank, Path(os.environ[SUPERVISED]))
    settings = json.loads((folder / "verify.json").read_text(encoding="utf-8"))
    derived = open_recipe(str(folder / "recipe.yaml")).recipe
    process_state, sizes = ProcessState(), folder / "model.json"
    differing = settings.get("differing", [])
    meet(folder / ("meeting-again" if differing else "meeting"), rank, ranks)
    if rank == 0 and not differing:
        _write(sizes, choose_model(derived, full=settings["full"]))
    process_state.wait()
    process_state.reset()
    verified = with_model(derived, json.loads(sizes.read_text(encoding="utf-8")))
    if rank == ranks - 1 and not differing:
        for name in REFERENCES:
            _write(folder / f"{name}.json", asdict(reference_figures(verified, name, folder, settings["steps"])))
    has_stages = "pipeline" in CARDS[verified.task].model.splits
    pipeline = has_stages and not OPTIMIZERS[verified.training.optimizer].from_deepspeed
    variants = make_variants(
        verified.training.global_batch,
        ranks,
        splits=not has_batchnorm(verified),
        tensor=verified.parallel.tensor,
        pipeline=pipeline,
    )
    if differing:
        variants = [variant for variant in variants if variant.name in differing]
        _run_twins(verified, variants, folder, rank, settings["steps"], process_state)
        return
    for number, variant in enumerate(variants):
        if rank >= variant.ranks:
            continue
        if rank == 0:
            print_line(f"{number + 1} of {len(variants)}: {variant.name}")
        meet(folder / f"meeting-{number}", rank, variant.ranks)
        figures = run_variant(verified, variant, folder, settings["steps"])
        process_state.reset()
        if rank == 0:
            _write(folder / f"variant-{number}.json", asdict(figures))


def _run_twins(
    recipe: Recipe, variants: Sequence[Variant], folder: Path, rank: int, steps: int, process_state: ProcessState
) -> None:
    """The divisions of some layouts by DistributedDataParallel, in float32 and in float64. All ranks call it."""
    divisions: dict[tuple[int, int], list[str]] = {}
    for variant in variants:
        if variant.tensor == variant.pipeline == 1:
            divisions.setdefault((variant.ranks, variant.micro_batch), []).append(variant.name)
    for number, ((ranks, micro_batch), names) in enumerate(divisions.items()):
        if rank >= ranks:
            continue
        found: dict[str, Any] = {"layouts": names}
        for dtype in ("float32", "float64"):
            name = f"{'1 rank' if ranks == 1 else f'{ranks} ranks'}, {micro_batch} at a time, {dtype}"
            meet(folder / f"meeting-twin-{number}-{dtype}", rank, ranks)
            twin = Variant(name, ranks, "none", micro_batch)
            try:
                figures = run_variant(recipe, twin, folder, steps, widened=dtype == "float64")
            except RuntimeError as error:  # a kernel that knows no float64
                figures = Figures(name, refused=f"{type(error).__name__}: {error}")
            found[dtype] = asdict(figures)
            process_state.reset()
        if rank == 0:
            _write(folder / f"twin-{number}.json", found)


def run_variant(recipe: Recipe, variant: Variant, folder: Path, steps: int, *, widened: bool = False) -> Figures:
    """Some steps and an evaluation under one layout, through the loop that trains. Its ranks call it. widened: in float64."""
    layout: dict[str, Any] = {"engine": "auto", "deepspeed": variant.deepspeed, "micro_batch": variant.micro_batch}
    layout |= {"rank_speed": "equal", "tensor": variant.tensor, "pipeline": variant.pipeline}
    recipe = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=layout)})
    try:
        plan = plan_here(recipe, variant.ranks)
    except UserError as error:
        return Figures(variant.name, refused=error.what)
    data = ready(recipe)
    session = open_session(plan)
    try:
        context = set_up(session, plan, data, lambda text: None, before=widen if widened else None)
    except UserError as error:
        if variant.pipeline == 1:
            raise
        return Figures(variant.name, refused=error.what)  # the model cannot be cut: all ranks say so
    output_dirs = OutputDirs(folder / "checkpoints", folder / "predictions")
    loop = make_loop(context, output_dirs, SilentListener(), StopRequest(), metrics=metrics_of(plan))
    losses, norms = [], []
    for _, result in zip(range(steps), loop.steps(), strict=False):
        losses.append(result.loss)
        norms.append(result.grad_norm)
    evaluation = loop.measure("validation").scalars
    loop.saver.close()
    state = context.engine.full_state_dict()
    digest = (
        save_weights(_trained_state(context.engine.module, state), folder / f"{variant.name}.safetensors")
        if state
        else ""
    )
    session.wait()
    return Figures(variant.name, losses, norms, evaluation, digest)


def widen(model: nn.Module) -> None:
    """Have a model compute in float64, as the reference does: weights, and the tensors that it is called with."""

    def cast(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return tuple(map(_as_float64, arguments)), {name: _as_float64(value) for name, value in named.items()}

    model.double().register_forward_pre_hook(cast, with_kwargs=True)


def _as_float64(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def reference_figures(recipe: Recipe, name: str, folder: Path, steps: int) -> Figures:
    """The same by one process, as the reference loop computes it. Any one rank calls it."""
    prepared = prepare_alone(recipe)
    plan, train = prepared.plan, prepared.datasets["train"]
    torch.manual_seed(recipe.seed)
    model = prepared.task.build(plan, prepared.artifacts, Facts())
    fix_batchnorm_gradients(model)
    freeze_weights(model, recipe.model.freeze)
    planner = MicroBatchPlanner(
        train.costs,
        cost_model(load_config(recipe.model)),
        ranks=1,
        micro_batch=1,
        packing=plan.training.packing,
        capacity=prepared.artifacts.settings.get("capacity", 0),
    )
    schedule = planner.schedule(recipe, plan.training.balance_window)
    total_steps = plan.training.total_steps(schedule.steps_per_epoch)
    figures = run_reference(
        prepared,
        model,
        schedule,
        steps=min(steps, total_steps),  # the loop ends there, too
        total_steps=total_steps,
        metrics=metrics_of(plan),
        dtype=REFERENCES[name],
    )
    digest = save_weights(figures.weights, folder / f"{name}.safetensors")
    return Figures(name, figures.losses, figures.norms, figures.evaluation, digest)


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
    prepared = prepare_alone(recipe)
    if prepared.plan.training.batch_norm == "frozen":
        return False
    model = prepared.task.build(prepared.plan, prepared.artifacts, Facts())
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())


def _trained_state(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trainable weights and statistics, as the reference keeps them."""
    names = {name for name, weight in module.named_parameters() if weight.requires_grad}
    names |= {name for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return {name: state[name] for name in names & state.keys()}


def _write(path: Path, value: Any) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(value), encoding="utf-8")
    beside.replace(path)
