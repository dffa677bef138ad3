"""`training:`: the mathematics of the run. Nothing here depends on the machine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from finetune.recipe.optimizers import OPTIMIZERS, describe_choice, describe_decay
from finetune.recipe.section import Section

Decay = Annotated[float, Field(ge=0, lt=1)]


class EarlyStopping(Section):
    patience: int = Field(
        default=3, ge=1, description="Number of evaluations without improvement after which training stops."
    )
    min_delta: float = Field(
        default=0.0, ge=0, description="Smallest change of the best metric that counts as an improvement."
    )


class TrainingSection(Section):
    epochs: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Passes over the training data. Default: 3, unless steps is set."
    )
    steps: int | None = Field(
        default=None, ge=1, le=10**12, description="Number of optimizer steps, instead of epochs."
    )
    global_batch: int = Field(
        default=32, ge=1, le=10_000_000, description="Examples per optimizer step, summed over all ranks."
    )
    learning_rate: float = Field(default=5e-5, gt=0, description="Peak learning rate.")
    optimizer: str = Field(default="adamw", description=describe_choice(), json_schema_extra={"enum": list(OPTIMIZERS)})
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="Adam's exponential decay rates.")
    epsilon: float = Field(default=1e-8, gt=0, description="Adam's epsilon.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum.")
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = Field(
        default="linear", description="Learning rate schedule after warmup."
    )
    warmup: float = Field(
        default=0.0,
        ge=0,
        description="Linear warmup from 0. Below 1: a fraction of all steps; 1 or more: a number of steps.",
    )
    min_learning_rate: float = Field(
        default=0.0, ge=0, description="Final learning rate of the linear and cosine schedules."
    )
    weight_decay: float = Field(default=0.0, ge=0, description=describe_decay())
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Layer-wise learning rate decay: the factor from each layer to the one below it. 1: the same rate "
        "everywhere. Typical for deep pretrained models: 0.65 to 0.9.",
    )
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Maximum global gradient norm (clipping). 0: no clipping."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Label smoothing factor, for tasks that classify."
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        default="auto",
        description="auto: bf16 on GPUs that support it, otherwise fp32. fp32: all of float32, convolutions too. tf32: float32 "
        "whose matrix products and convolutions read 10 of 23 bits of each factor, on GPUs from Ampere on (compute "
        "capability 8.0): faster; each factor is as precise as in fp16.",
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Stop when the best metric no longer improves."
    )

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
            raise ValueError("must be a fraction of the steps (below 1) or a whole number of steps")
        return value
