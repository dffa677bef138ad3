"""The Plan: what the recipe means on this many ranks — batch arithmetic, DeepSpeed's configuration, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.planning.batch import BatchPlan, plan_batch
from finetune.planning.deepspeed import offloads, read_deepspeed_config, resolve_deepspeed_config, zero_stage
from finetune.planning.engine import choose_engine
from finetune.planning.tensor import check_engine
from finetune.recipe.card import TaskCard
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.recipe import Recipe

MICRO_BATCHES_PER_STAGE = 4  # of a pipeline's step: then a stage is idle for at most a fifth of it


@dataclass(frozen=True)
class Plan:
    """deepspeed: the resolved engine configuration, or None for DistributedDataParallel. device: "cpu" or "cuda".

    split: ranks that hold one copy of the model together. pipeline: stages that it is cut into. engine: its name in
    `recipe/engines.py`.
    """

    ranks: int
    device: str
    precision: str
    batch: BatchPlan
    deepspeed: dict[str, Any] | None
    optimizer: str
    split: int = 1
    pipeline: int = 1
    engine: str = "ddp"

    @property
    def stage(self) -> int:
        return zero_stage(self.deepspeed)

    @property
    def engine_name(self) -> str:
        if self.pipeline > 1:
            return f"pipeline of {self.pipeline} stages"
        if self.deepspeed is None:
            return "DistributedDataParallel" if self.engine == "ddp" else self.engine
        tensor = self.deepspeed.get("tensor_parallel", {}).get("autotp_size", 1)
        return f"DeepSpeed ZeRO-{self.stage}" + (f", tensor parallel {tensor}" if tensor > 1 else "")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(
    recipe: Recipe,
    card: TaskCard,
    *,
    ranks: int,
    device: str,
    bf16_supported: bool,
    deepspeed_config: Path | None,
    hidden_size: int = 0,
    layer_elements: int = 0,
    zero_settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Pure function of the recipe and of what this machine is. Every rank computes the same one.

    Raises: UserError where the recipe cannot be carried out on this machine.
    """
    precision = recipe.training.precision
    if precision == "auto":
        precision = "bf16" if device == "cuda" and bf16_supported else "fp32"
    if precision == "fp16" and device == "cpu":
        raise UserError("fp16 needs a GPU", where="training.precision", remedy="use fp32 or bf16 on a CPU")
    split = recipe.parallel.split
    if ranks % split:
        raise UserError(
            f"{ranks} ranks are no multiple of the {split} that hold a model together",
            where="parallel.tensor" if recipe.parallel.tensor > 1 else "parallel.pipeline",
            remedy=f"start {split}, {2 * split}, ... ranks (--processes)",
        )
    stages = recipe.parallel.pipeline
    batch = plan_batch(
        recipe.training.global_batch,
        ranks // split,
        recipe.parallel.micro_batch,
        card.micro_batch,
        at_least=MICRO_BATCHES_PER_STAGE * stages if stages > 1 else 1,
    )
    config = None
    if deepspeed_config is not None:
        config = resolve_deepspeed_config(
            read_deepspeed_config(deepspeed_config),
            batch=batch,
            precision=precision,
            max_grad_norm=recipe.training.max_grad_norm,
            hidden_size=hidden_size,
            layer_elements=layer_elements,
            zero_settings=zero_settings,
            tensor=recipe.parallel.tensor,
        )
    check_engine(recipe.parallel.tensor, None if config is None else zero_stage(config))
    if config is not None and zero_stage(config) == 0 and precision != "fp32":
        raise UserError(
            f"ZeRO stage 0 under DeepSpeed in {precision} keeps flat master copies that no checkpoint can name",
            where="parallel.deepspeed",
            remedy="use zero1, zero2 or zero3, or none (DistributedDataParallel)",
        )
    speeds = recipe.parallel.rank_speed
    if isinstance(speeds, list) and len(speeds) != ranks // split:
        copies = "ranks" if split == 1 else f"copies of the model ({split} ranks each)"
        raise UserError(
            f"parallel.rank_speed has {len(speeds)} entries for {ranks // split} {copies}",
            where="parallel.rank_speed",
            remedy="give one relative speed for each, or auto",
        )
    optimizer = recipe.training.optimizer
    if offloads(config) and device == "cuda":
        optimizer = OPTIMIZERS[optimizer].offloaded or optimizer
    engine = choose_engine(recipe.parallel)
    return Plan(ranks, device, precision, batch, config, optimizer, split, stages, engine)
