"""`parallel:` — hints about the machine; all of it can be left out, and none of it changes the numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.engines import AUTO, ENGINES, describe_engines
from finetune.recipe.section import Section

CountOrAuto = Annotated[int, Field(ge=1)] | Literal["auto"]


class ParallelSection(Section):
    processes: CountOrAuto = Field(default="auto", description="Ranks on this machine; auto: one a GPU, else 1.")
    engine: str = Field(default=AUTO, description=describe_engines(), json_schema_extra={"examples": [AUTO, *ENGINES]})
    deepspeed: str = Field(
        default="zero2",
        description="none (plain DistributedDataParallel), or the name or path of a JSON in ds_configs/.",
    )
    rank_speed: Literal["equal", "auto"] | list[Annotated[float, Field(gt=0)]] = Field(
        default="equal",
        description="Shares of work: equal; one relative speed a rank (a copy of the model, where ranks share one), such as "
        "[1.0, 1.0, 0.5]; or auto, measured in "
        "the first steps (then float rounding may differ from run to run).",
    )
    tensor: int = Field(
        default=1,
        ge=1,
        description="Ranks that share each layer's matrices (DeepSpeed AutoTP; language models, zero1).",
    )
    pipeline: int = Field(
        default=1,
        ge=1,
        description="Ranks that each hold a group of layers, in a pipeline (image classification; deepspeed: none).",
    )
    micro_batch: CountOrAuto = Field(
        default="auto", description="Examples a forward pass on one rank; the rest is gradient accumulation."
    )

    @property
    def split(self) -> int:
        """Ranks that hold one copy of the model together: a replica."""
        return self.tensor * self.pipeline
