"""`evaluation:`, `checkpoint:` and `tracking:` — what is measured, kept and told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.section import Section

Every = Annotated[int, Field(ge=1)] | Literal["epoch"]
KeepAfterTraining = Literal["all", "best", "none"]


class EvaluationSection(Section):
    metrics: list[str] | None = Field(default=None, description="Names of metrics; default: the task's own.")
    every: Every = Field(default="epoch", description="After each epoch, or every so many steps.")
    best: str = Field(default="", description="Metric that chooses the best checkpoint; default: the task's, or loss.")
    best_mode: Literal["auto", "max", "min"] = Field(default="auto", description="auto: min for loss and perplexity.")
    samples: int = Field(default=3, ge=0, description="Examples shown in full in the report, before and after.")


class CheckpointSection(Section):
    every: Every = Field(default="epoch", description="After each epoch, or every so many steps.")
    keep: int = Field(default=2, ge=1, description="Newest checkpoints kept; the best one is kept besides.")
    keep_after_training: KeepAfterTraining = Field(
        default="all",
        description="Once training is done, keep all of these checkpoints, only the best, or none. `model/` stays.",
    )


class TrackingSection(Section):
    wandb: Literal["auto", "online", "offline", "off"] = Field(
        default="auto", description="auto: online where an API key is at hand, else offline."
    )
    project: str = Field(default="finetune", description="W&B project.")
    entity: str = Field(default="", description="W&B team or user.")
    group: str = Field(default="", description="W&B group; default: the recipe's name.")
    tags: list[str] = Field(default_factory=list, description="W&B tags.")
    log_every: int = Field(default=10, ge=1, description="Steps between two logged training rows.")
