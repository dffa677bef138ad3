"""The Plan: what a recipe means on this machine. Made once by `resolve`; nothing else interprets "auto"."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from finetune.planning.batch import BatchPlan
from finetune.planning.deepspeed import NOTES, zero_stage
from finetune.recipe.recipe import Recipe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainingPlan:
    """What is learned, whatever the machine: `training` of plan.json, kept when a run is resumed.

    precision: fp32, tf32, bf16 or fp16. batch_norm: synchronized, local or frozen. optimizer: as the recipe names it.
    epochs, steps: one of the two is set. best_mode: max or min.
    packing: none, padding_free or packed. capacity: tokens of a pack, or that a padding-free micro-batch holds unless this
    machine measures its own; 0 for none; for an automatic one the tokenizer's limit may lower it.
    balance_window: steps that share out examples by length; None: the schedule's own.
    float8: none, or torchao's recipe for the products of linear layers.
    """

    precision: str
    batch_norm: str
    optimizer: str
    epochs: int | None
    steps: int | None
    metrics: tuple[str, ...]
    best_metric: str
    best_mode: str
    packing: str
    capacity: int
    balance_window: int | None
    float8: str = "none"

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None, "a training has one length"
        return self.epochs * steps_per_epoch


@dataclass(frozen=True)
class MachinePlan:
    """How it is computed here: `machine` of plan.json, resolved anew at each start.

    device: cpu or cuda. engine: a name in recipe/engines.py. deepspeed: the engine's resolved configuration.
    optimizer: the implementation in use. weights_dtype: what weights are loaded in: float32, bfloat16 or float16.
    tensor: ranks that share each layer's matrices. pipeline: stages that the model is cut into. kernels: liger or none.
    compile: layers or none.
    master_weights: float32 copies of weights in bfloat16, without DeepSpeed, which has its own.
    capacity_limit: tokens up to which a training measures how many a padding-free micro-batch should hold; 0: it does not.
    capacity: what it measured; 0: as the training part says.
    """

    ranks: int
    device: str
    engine: str
    deepspeed: dict[str, Any] | None
    batch: BatchPlan
    optimizer: str
    weights_dtype: str
    tensor: int = 1
    pipeline: int = 1
    kernels: str = "none"
    compile: str = "none"
    master_weights: bool = False
    capacity_limit: int = 0
    capacity: int = 0

    @property
    def replica_size(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.pipeline


@dataclass(frozen=True)
class Plan:
    """Recipe, training and machine. Every rank makes the same one. notes: lines for the user, reported before the first
    step.
    """

    recipe: Recipe
    training: TrainingPlan
    machine: MachinePlan
    notes: tuple[str, ...] = ()

    ranks = property(lambda self: self.machine.ranks)
    device = property(lambda self: self.machine.device)
    precision = property(lambda self: self.training.precision)
    engine = property(lambda self: self.machine.engine)
    batch = property(lambda self: self.machine.batch)
    deepspeed = property(lambda self: self.machine.deepspeed)
    optimizer = property(lambda self: self.machine.optimizer)
    replica_size = property(lambda self: self.machine.replica_size)
    pipeline = property(lambda self: self.machine.pipeline)

    @property
    def stage(self) -> int:
        """ZeRO's; 0 without DeepSpeed."""
        return zero_stage(self.machine.deepspeed)

    @property
    def engine_name(self) -> str:
        """For people: "DeepSpeed ZeRO-1, tensor parallel 2"."""
        machine = self.machine
        if machine.engine == "pipeline":
            return f"pipeline of {machine.pipeline} stages"
        if machine.deepspeed is None:
            return "DistributedDataParallel" if machine.engine == "ddp" else machine.engine
        return f"DeepSpeed ZeRO-{self.stage}" + (f", tensor parallel {machine.tensor}" if machine.tensor > 1 else "")

    @property
    def weights_dtype(self) -> torch.dtype:
        """What the model's weights are loaded in."""
        import torch

        found: torch.dtype = getattr(torch, self.machine.weights_dtype)
        return found

    def to_dict(self) -> dict[str, Any]:
        """{"training": ..., "machine": ...}, as plan.json holds it."""
        machine = asdict(self.machine)
        if self.machine.deepspeed is not None:
            machine["deepspeed_notes"] = dict(NOTES)
        return {"training": asdict(self.training), "machine": machine}
