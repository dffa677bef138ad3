"""`evaluation:`, `checkpoint:` and `tracking:`: what is measured, kept and logged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.section import Section
from finetune.recipe.trackers import TrackerName, describe_trackers

Every = Annotated[int, Field(ge=1)] | Literal["epoch"]
KeepAfterTraining = Literal["all", "best", "none"]


class EvaluationSection(Section):
    metrics: list[str] | None = Field(default=None, description="Names of metrics. Default: those of the task.")
    every: Every = Field(default="epoch", description="epoch: after each epoch; N: every N steps.")
    at_start: bool = Field(
        default=False,
        description="Evaluate before the first step, too: the report compares the trained model with the untrained one.",
    )
    best: str = Field(
        default="", description="Metric that selects the best checkpoint. Default: that of the task, or loss."
    )
    best_mode: Literal["auto", "max", "min"] = Field(
        default="auto", description="Maximize or minimize the best metric. auto: by the metric, such as min for loss."
    )
    samples: int = Field(
        default=3, ge=0, description="Examples shown in full in the report, before and after training."
    )


class CheckpointSection(Section):
    every: Every = Field(default="epoch", description="epoch: after each epoch; N: every N steps.")
    keep: int = Field(
        default=2, ge=1, description="Number of newest checkpoints to keep. The best one is kept in addition."
    )
    keep_after_training: KeepAfterTraining = Field(
        default="all",
        description="Checkpoints to keep when training is complete: all of the above, only the best, or none. `model/` "
        "is always kept.",
    )


Alert = Literal["done", "failed", "diverged", "disk_full", "stopped"]
Uploaded = Literal["model", "data"]


class TrackingSection(Section):
    wandb: Literal["auto", "online", "offline", "off"] = Field(
        default="auto", description="auto: online if an API key is found, otherwise offline."
    )
    project: str = Field(default="finetune", description="W&B project.")
    entity: str = Field(default="", description="W&B team or user.")
    group: str = Field(default="", description="W&B group. Default: the name of the recipe.")
    tags: list[str] = Field(default_factory=list, description="W&B tags.")
    log_every: int = Field(default=10, ge=1, description="Log training metrics every N steps.")
    also: list[TrackerName] = Field(default_factory=list, description=describe_trackers())
    alerts: list[Alert] = Field(
        default=["failed", "diverged", "disk_full", "stopped"],
        description="W&B alerts (by mail or chat, as the W&B account says), each kind on its own: done; stopped (on request, "
        "resumable); diverged (a loss or gradient norm that is not finite); disk_full; failed (all other failures, with the "
        "reason). [] for none.",
    )
    upload: list[Uploaded] = Field(
        default_factory=list,
        description="What W&B stores as files of its artifacts: model, data. Artifacts refer to all else where it is.",
    )
