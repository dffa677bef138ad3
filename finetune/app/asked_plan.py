"""How a model that is asked is held in this process: precision, quantization, device, and whether it can be divided."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from finetune.app.asked_stages import check_stages
from finetune.app.machine import plan_alone
from finetune.app.model_sources import FoundModel
from finetune.errors import UserError
from finetune.models.config import load_config
from finetune.models.device import describe_unused_gpu, uses_cuda, why_no_gpu
from finetune.models.placement import Placement
from finetune.planning.plan import Plan
from finetune.planning.stored import StoredPlan
from finetune.planning.tensor import check_model

Precision = Literal["fp32", "bf16", "fp16"]
Quantization = Literal["none", "4bit", "8bit"]
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def plan_asked(
    found: FoundModel, precision: Precision | None, quantization: Quantization | None, device: torch.device
) -> Plan:
    """The plan of one process; what is asked takes the place of what the model was trained with."""
    model, training, stored = found.recipe.model, found.recipe.training, found.stored
    notes = [note for note in (describe_unused_gpu(),) if note]
    if quantization is not None:
        if quantization != "none" and model.init == "config":
            raise UserError(
                f"--quantization {quantization}: weights are quantized while a model folder is loaded, and these come out of "
                "a checkpoint",
                where=found.name,
                remedy="Give the model/ of the run, or what finetune export writes.",
            )
        model = model.model_copy(update={"quantization": quantization})
    if device.type == "cpu" and precision == "fp16":
        raise UserError("fp16 needs a GPU", where="--precision", remedy="Use fp32 or bf16 on a CPU.")
    if device.type == "cpu" and precision is None and found.precision in ("fp16", "tf32"):
        precision = "fp32"
        notes.append(f"{found.precision} needs a GPU: the model computes in fp32 here")
    if precision is not None:
        model = model.model_copy(update={"dtype": DTYPE_NAMES[precision]})
        training = training.model_copy(update={"precision": precision})
        stored = StoredPlan({**stored.training, "precision": precision}, {}) if stored else None
    if device.type == "cpu":
        model = model.model_copy(update={"kernels": "none"})  # the machine may have a GPU all the same
    recipe = found.recipe.model_copy(update={"model": model, "training": training})
    plan = plan_alone(recipe, StoredPlan(stored.training, {}) if stored else None)
    return replace(plan, notes=tuple(notes))


def choose_device(device: torch.device | str | None) -> torch.device:
    """None: the current GPU, the CPU where there is none. Raises: UserError for a GPU that there is not."""
    if device is not None:
        chosen = torch.device(device)
        if chosen.type == "cuda":
            _check_gpu(chosen)
        return chosen
    return torch.device("cuda", torch.cuda.current_device()) if uses_cuda() else torch.device("cpu")


def _check_gpu(device: torch.device) -> None:
    """Raises: UserError."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) < count:
        return
    why = "" if count else f": {why_no_gpu()}"
    raise UserError(
        f"torch {torch.__version__} sees {count} GPU{'' if count == 1 else 's'}{why}",
        where=f"device {device}",
        remedy="Choose another device; finetune doctor lists what there is.",
    )


def check_placement(found: FoundModel, plan: Plan, placement: Placement | None) -> None:
    """Raises: UserError for a model that cannot be placed so."""
    if placement is None or not (placement.spreads_layers or placement.ranks > 1):
        return
    if placement.stages > 1:
        check_stages(found, plan)
        return
    recipe, where = plan.recipe, found.name
    if recipe.model.init == "config":
        raise UserError(
            "weights out of a checkpoint are put together in one place before they are used",
            where=where,
            remedy="Give the model/ of the run, or what finetune export writes: a rank reads its own part of these.",
        )
    if placement.slices == 1:
        return
    check_model(load_config(recipe.model), placement.slices, where="--slices")
    if recipe.adapter is not None or recipe.model.quantization != "none":
        what = "an adapter" if recipe.adapter is not None else "quantized weights"
        raise UserError(
            f"layers with {what} cannot be sliced over ranks",
            where=where,
            remedy="Spread whole layers over the GPUs (--layers), or merge the adapter: finetune export RUN --merge.",
        )
