"""Resolve a recipe on a machine: every "auto" gets its value here, once, before data is read or a model is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.errors import RecipeFaults, UserError
from finetune.models.padding_free import padding_free_obstacle
from finetune.planning.batch import BatchPlan, plan_batch
from finetune.planning.best import best_mode
from finetune.planning.capacity import MEASURED_UP_TO
from finetune.planning.deepspeed import offloads, resolve_deepspeed_config, zero_stage
from finetune.planning.engine import choose_engine, deepspeed_name
from finetune.planning.plan import MachinePlan, Plan, TrainingPlan
from finetune.planning.shape import hidden_size, layer_elements, usable_positions
from finetune.planning.tensor import check_engine, check_model
from finetune.recipe.card import TaskCard
from finetune.recipe.deepspeed import Asked, config_faults, read_deepspeed_config
from finetune.recipe.draft import DEFAULT_EPOCHS
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.recipe import Recipe
from finetune.recipe.shelf import find_deepspeed_config

MICRO_BATCHES_PER_STAGE = 4  # of a pipeline's step: then a stage is idle for at most a fifth of it
HALF = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Machine:
    """What a recipe is resolved for. device: cpu or cuda. liger: model types that liger-kernel knows; None: not installed.
    tf32_supported: asked only where the recipe wants it.
    """

    ranks: int
    device: str
    bf16_supported: bool
    liger: frozenset[str] | None = None
    tf32_supported: bool = False


def resolve(
    recipe: Recipe,
    card: TaskCard,
    *,
    machine: Machine,
    config: Any,
    model_class: Any,
    kept: TrainingPlan | None = None,
    zero_settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Pure function of its arguments and of the DeepSpeed file that the recipe names.

    config: of the transformers model. model_class: the class that is built, None where it cannot be known. kept: the
    training plan of a run that is resumed. zero_settings: what the model needs in `zero_optimization`.
    Raises: UserError where the recipe cannot be carried out on this machine.
    """
    training = kept or resolve_training(recipe, card, machine=machine, config=config, model_class=model_class)
    _check_precision(training.precision, machine, resumed=kept is not None)
    _check_ranks(recipe, machine.ranks)
    batch = _batch(recipe, card, machine.ranks)
    deepspeed = _deepspeed(recipe, training.precision, batch, config, zero_settings)
    check_engine(recipe.parallel.tensor, None if deepspeed is None else zero_stage(deepspeed))
    check_model(config, recipe.parallel.tensor)
    optimizer = training.optimizer
    if offloads(deepspeed) and machine.device == "cuda":
        optimizer = OPTIMIZERS[optimizer].offloaded or optimizer
    kernels, notes = _kernels(recipe, machine, config)
    if training.float8 != "none" and recipe.model.compile == "none":
        notes += (
            "model.float8 without model.compile: layers is slower than bf16: scaling and rounding are passes of their own",
        )
    return Plan(
        recipe,
        training,
        MachinePlan(
            ranks=machine.ranks,
            device=machine.device,
            engine=choose_engine(recipe.parallel),
            deepspeed=deepspeed,
            batch=batch,
            optimizer=optimizer,
            weights_dtype=weights_dtype(recipe, card, training.precision, machine.device),
            tensor=recipe.parallel.tensor,
            pipeline=recipe.parallel.pipeline,
            kernels=kernels,
            compile=recipe.model.compile,
            master_weights=keeps_masters(recipe, card, training.precision, machine.device),
            capacity_limit=_capacity_limit(recipe, training.packing, machine.device),
        ),
        notes,
    )


def _check_precision(precision: str, machine: Machine, *, resumed: bool) -> None:
    """Raises: UserError for a precision that the device does not have. A run in tf32 that is resumed elsewhere computes in
    float32 there.
    """
    if precision == "fp16" and machine.device == "cpu":
        remedy = "Resume the run on a GPU." if resumed else "Set training.precision: fp32 or bf16 on a CPU."
        raise UserError("fp16 needs a GPU", where="training.precision", remedy=remedy)
    if precision == "tf32" and not resumed and not (machine.device == "cuda" and machine.tf32_supported):
        raise UserError(
            "tf32 needs a GPU of compute capability 8.0 or higher (Ampere)",
            where="training.precision",
            remedy="Set training.precision: fp32.",
        )


def resolve_training(
    recipe: Recipe, card: TaskCard, *, machine: Machine, config: Any, model_class: Any
) -> TrainingPlan:
    """What is learned. Raises: UserError if the model cannot be trained so."""
    training, evaluation = recipe.training, recipe.evaluation
    precision = training.precision
    if precision == "auto":
        precision = "bf16" if machine.device == "cuda" and machine.bf16_supported else "fp32"
    packing = _packing(recipe, card, config, model_class)
    window: int | str | None = recipe.data.balance_window
    if window == "auto":
        window = card.batches.balance_window if packing == "none" or card.batches.sequences else None
    best = evaluation.best or card.metrics.best
    return TrainingPlan(
        precision=precision,
        batch_norm=_batch_norm(recipe),
        optimizer=training.optimizer,
        epochs=None if training.steps else training.epochs or DEFAULT_EPOCHS,
        steps=training.steps,
        metrics=card.metrics.default if evaluation.metrics is None else tuple(evaluation.metrics),
        best_metric=best,
        best_mode=best_mode(evaluation, best),
        packing=packing,
        capacity=0 if packing == "none" else _capacity(recipe, card, config),
        balance_window=None if window is None else int(window),
        float8=recipe.model.float8,
    )


def _batch_norm(recipe: Recipe) -> str:
    """auto: frozen for pretrained weights (their statistics saw far more data), else synchronized."""
    chosen = recipe.model.batch_norm
    if chosen == "auto":
        chosen = "frozen" if recipe.model.init == "pretrained" else "synchronized"
    return chosen


def _packing(recipe: Recipe, card: TaskCard, config: Any, model_class: Any) -> str:
    """auto: the task's own way where the model can, else none. Raises: UserError if it must, and cannot."""
    asked = recipe.data.packing
    packing = card.batches.packing if asked == "auto" else asked
    obstacle = None if packing == "none" else padding_free_obstacle(model_class, config, recipe.model.attention)
    if obstacle is None:
        return packing
    if asked != "auto":
        raise obstacle
    return "none"


def _capacity(recipe: Recipe, card: TaskCard, config: Any) -> int:
    """auto: the longest sequence that the recipe and the model's positions allow; of tasks whose micro-batches are counted in
    examples, as many of the longest examples as these hold.
    """
    asked = recipe.data.capacity
    if asked != "auto":
        return asked
    longest = usable_positions(int(getattr(recipe.options, "max_length", 0)), config)
    examples = card.batches.micro_batch if recipe.parallel.micro_batch == "auto" else recipe.parallel.micro_batch
    return longest * card.batches.sequences * examples if card.batches.sequences else longest


def _capacity_limit(recipe: Recipe, packing: str, device: str) -> int:
    """auto: where micro-batches are free to be of any size, the machine says how large; packs are part of the training."""
    is_free = packing == "padding_free" and recipe.data.capacity == "auto"
    return MEASURED_UP_TO.get(device, 0) if is_free else 0


def _kernels(recipe: Recipe, machine: Machine, config: Any) -> tuple[str, tuple[str, ...]]:
    """(liger or none, notes). Raises: UserError if liger is asked for on a GPU and cannot be used."""
    asked, kind = recipe.model.kernels, getattr(config, "model_type", "")
    if asked == "none" or machine.device != "cuda":
        return "none", ()
    if machine.liger is not None and kind in machine.liger:
        if recipe.model.compile != "none":
            return "none", ("model.kernels: none, because model.compile fuses the layers",)
        return "liger", ()
    if machine.liger is None:
        obstacle, remedy = "liger-kernel is not installed", "Run: pip install 'finetune[gpu]'"
    else:
        obstacle, remedy = f"liger-kernel knows no {kind} models", "Set model.kernels: auto or none."
    if asked == "liger":
        raise UserError(obstacle, where="model.kernels", remedy=remedy)
    is_text = hasattr(getattr(config, "text_config", config), "rms_norm_eps")
    return "none", (f"model.kernels: none, because {obstacle}",) if is_text else ()


def weights_dtype(recipe: Recipe, card: TaskCard, precision: str, device: str) -> str:
    """auto: float32, unless there are float32 masters of weights in bfloat16 or float16, as DeepSpeed keeps them; loading in
    that type halves the memory of the start.
    """
    if recipe.model.dtype != "auto":
        return recipe.model.dtype
    is_half = deepspeed_name(recipe.parallel) is not None or keeps_masters(recipe, card, precision, device)
    return HALF.get(precision, "float32") if is_half else "float32"


def keeps_masters(recipe: Recipe, card: TaskCard, precision: str, device: str) -> bool:
    """Whether DistributedDataParallel updates bfloat16 weights through float32 copies.

    auto: on a GPU, where it moves fewer bytes (benchmarks/one_gpu.py), for models of text: those of images have statistics
    and boxes that need float32. `model.dtype` says otherwise.
    """
    if precision != "bf16" or choose_engine(recipe.parallel) != "ddp":
        return False
    asked = recipe.parallel.master_weights
    if asked == "auto":
        return device == "cuda" and not card.batches.decodes and recipe.model.dtype == "auto"
    return asked


def _check_ranks(recipe: Recipe, ranks: int) -> None:
    size, speeds = recipe.parallel.replica_size, recipe.parallel.rank_speed
    if ranks % size:
        raise UserError(
            f"{ranks} ranks are not a multiple of the {size} that hold one copy of the model",
            where="parallel.tensor" if recipe.parallel.tensor > 1 else "parallel.pipeline",
            remedy=f"Start {size}, {2 * size}, ... ranks (--processes).",
        )
    if isinstance(speeds, list) and len(speeds) != ranks // size:
        copies = "ranks" if size == 1 else f"copies of the model ({size} ranks each)"
        raise UserError(
            f"parallel.rank_speed has {len(speeds)} entries for {ranks // size} {copies}",
            where="parallel.rank_speed",
            remedy="Give one relative speed for each, or auto.",
        )


def _batch(recipe: Recipe, card: TaskCard, ranks: int) -> BatchPlan:
    stages = recipe.parallel.pipeline
    return plan_batch(
        recipe.training.global_batch,
        ranks // recipe.parallel.replica_size,
        recipe.parallel.micro_batch,
        card.batches.micro_batch,
        at_least=MICRO_BATCHES_PER_STAGE * stages if stages > 1 else 1,
    )


def _deepspeed(
    recipe: Recipe, precision: str, batch: BatchPlan, config: Any, zero_settings: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    name = deepspeed_name(recipe.parallel)
    if name is None:
        return None
    file = find_deepspeed_config(name)
    written = read_deepspeed_config(file)
    if faults := config_faults(written, Asked.of(recipe, (precision,)), where=str(file)):
        raise RecipeFaults(faults)
    resolved = resolve_deepspeed_config(
        written,
        batch=batch,
        precision=precision,
        max_grad_norm=recipe.training.max_grad_norm,
        hidden_size=hidden_size(config),
        layer_elements=layer_elements(config),
        zero_settings=zero_settings,
        tensor=recipe.parallel.tensor,
    )
    if zero_stage(resolved) == 0 and precision in HALF:
        raise UserError(
            f"ZeRO stage 0 under DeepSpeed in {precision} keeps flat master weights, which a checkpoint cannot store by name",
            where="parallel.deepspeed",
            remedy="Use zero1, zero2 or zero3, or none (DistributedDataParallel).",
        )
    return resolved
