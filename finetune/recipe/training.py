"""`training:` — the mathematics of the run. Nothing here depends on the machine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from finetune.recipe.optimizers import OPTIMIZERS, describe_choice, describe_decay
from finetune.recipe.section import Section

Decay = Annotated[float, Field(ge=0, lt=1)]


class EarlyStopping(Section):
    patience: int = Field(default=3, ge=1, description="Evaluations without improvement before training ends.")
    min_delta: float = Field(default=0.0, ge=0, description="Smallest change of the best metric that counts.")


class TrainingSection(Section):
    epochs: int | None = Field(
        default=None, ge=1, description="Passes over the training data (3 unless steps is given)."
    )
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps, instead of epochs.")
    global_batch: int = Field(default=32, ge=1, description="Examples per optimizer step, over all ranks.")
    learning_rate: float = Field(default=5e-5, gt=0, description="Peak learning rate.")
    optimizer: str = Field(default="adamw", description=describe_choice(), json_schema_extra={"enum": list(OPTIMIZERS)})
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="Adam's decay rates.")
    epsilon: float = Field(default=1e-8, gt=0, description="Adam's epsilon.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum.")
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = Field(
        default="linear", description="Learning rate after warmup."
    )
    warmup: float = Field(
        default=0.0, ge=0, description="Below 1: share of all steps; from 1 on: steps. The rate rises linearly from 0."
    )
    min_learning_rate: float = Field(default=0.0, ge=0, description="Where linear and cosine end.")
    weight_decay: float = Field(default=0.0, ge=0, description=describe_decay())
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Each layer learns at this share of the rate of the layer above it; 1: all alike. For tuning deep "
        "pretrained models: 0.65 to 0.9.",
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="Clip the global gradient norm; 0: never.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Where the task has labels of classes.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 on GPUs that have it, else fp32."
    )
    early_stopping: EarlyStopping | None = Field(default=None, description="Stop when `best` no longer improves.")

    @field_validator("optimizer")
    @classmethod
    def _in_registry(cls, value: str) -> str:
        if value not in OPTIMIZERS:
            raise PydanticCustomError("literal_error", "Input should be one of the optimizers")
        return value

    @field_validator("warmup")
    @classmethod
    def _share_or_steps(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("neither a share of the steps (below 1) nor a whole number of steps")
        return value
