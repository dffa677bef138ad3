"""`parallel:`: hints about the machine. All keys are optional, and none of them changes the numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.engines import AUTO, ENGINES, describe_engines
from finetune.recipe.section import Section

CountOrAuto = Annotated[int, Field(ge=1)] | Literal["auto"]


class ParallelSection(Section):
    processes: CountOrAuto = Field(
        default="auto", description="Processes (ranks) on this machine. auto: one per GPU, or 1."
    )
    engine: str = Field(default=AUTO, description=describe_engines(), json_schema_extra={"examples": [AUTO, *ENGINES]})
    deepspeed: str = Field(
        default="zero2",
        description="none (DistributedDataParallel), a name from ds_configs/, or the path of a DeepSpeed JSON file.",
    )
    master_weights: bool | Literal["auto"] = Field(
        default="auto",
        description="With deepspeed: none in bf16, hold weights and gradients in bfloat16 and update them through float32 "
        "copies, as DeepSpeed does: 2 + 2 + 4 bytes per parameter instead of 4 + 4, and no weight is cast in a forward pass. "
        "Gradients of several micro-batches, and of the ranks, are added up in bfloat16 instead of float32. auto: true on a "
        "GPU for tasks of text, unless model.dtype names a type; else false.",
    )
    rank_speed: Literal["equal", "auto"] | list[Annotated[float, Field(gt=0)]] = Field(
        default="equal",
        description="Relative speed of the ranks, for load balancing. equal; a list with one speed per rank (per replica with "
        "tensor or pipeline), such as [1.0, 1.0, 0.5]; or auto: measured during training (results may then differ between "
        "runs by float rounding).",
    )
    tensor: int = Field(
        default=1,
        ge=1,
        description="Tensor parallel size: ranks that share each layer's matrices (DeepSpeed AutoTP; language models, zero1).",
    )
    pipeline: int = Field(
        default=1,
        ge=1,
        description="Pipeline parallel size: number of stages, one per rank (image classification, with deepspeed: none).",
    )
    micro_batch: CountOrAuto = Field(
        default="auto", description="Maximum examples per forward pass on one rank; the rest is gradient accumulation."
    )

    @property
    def replica_size(self) -> int:
        """Number of ranks that hold one copy of the model (a replica)."""
        return self.tensor * self.pipeline
