"""`parallel:` — hints about the machine; all of it can be left out, and none of it changes the numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.section import Section

CountOrAuto = Annotated[int, Field(ge=1)] | Literal["auto"]


class ParallelSection(Section):
    processes: CountOrAuto = Field(default="auto", description="Ranks on this machine; auto: one a GPU, else 1.")
    deepspeed: str = Field(
        default="zero2",
        description="none (plain DistributedDataParallel), or the name or path of a JSON in ds_configs/.",
    )
    micro_batch: CountOrAuto = Field(
        default="auto", description="Examples a forward pass on one rank; the rest is gradient accumulation."
    )
