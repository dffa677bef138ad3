"""The recipe: everything the user asked for, frozen. `load.py` loads it."""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import Field, SerializeAsAny, create_model

from finetune.recipe.card import NoOptions, TaskCard
from finetune.recipe.data import DataSection
from finetune.recipe.evaluation import CheckpointSection, EvaluationSection, TrackingSection
from finetune.recipe.model import AdapterSection, ModelSection
from finetune.recipe.parallel import ParallelSection
from finetune.recipe.section import Section
from finetune.recipe.training import TrainingSection


class Recipe(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=120,
        description="Names the run folder and the W&B group.",
        json_schema_extra={
            "machine": True,
            "patternErrorMessage": "letters, digits, dots, dashes and underscores, starting with a letter or digit",
        },
    )
    task: str = Field(description="Task to train for.")
    seed: int = Field(
        default=17, ge=0, le=2**32 - 1, description="Random seed for the order of examples, dropout and new weights."
    )
    model: ModelSection = Field(description="The model to fine-tune.")
    adapter: AdapterSection | None = Field(default=None, description="Train a low-rank adapter instead of all weights.")
    data: DataSection = Field(description="The data: sources, columns, packing.")
    options: SerializeAsAny[Section] = Field(default_factory=NoOptions, description="The task's own options.")
    training: TrainingSection = Field(
        default_factory=TrainingSection,
        description="Hyperparameters of the training. None of them depends on the machine.",
    )
    parallel: ParallelSection = Field(
        default_factory=ParallelSection,
        description="Hints about the machine; none of them changes the numbers.",
        json_schema_extra={"machine": True},
    )
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="What is measured, and when.")
    checkpoint: CheckpointSection = Field(
        default_factory=CheckpointSection, description="What is kept, and when.", json_schema_extra={"machine": True}
    )
    tracking: TrackingSection = Field(
        default_factory=TrackingSection,
        description="What is logged to W&B, and how often.",
        json_schema_extra={"machine": True},
    )


@cache
def recipe_type(card: TaskCard) -> type[Recipe]:
    """The recipe type of one task: `task` allows only its name, `options` is the task's section."""
    return create_model(
        f"{card.name}_recipe",
        __base__=Recipe,
        task=(Literal[card.name], Field(description=card.summary)),  # type: ignore[arg-type]
        options=(card.options, Field(default_factory=card.options, description="The task's own options.")),
    )
