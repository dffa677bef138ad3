"""What a recipe needs to know of a task, and nothing that needs torch: a task's file declares one card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune.recipe.section import Section


class NoOptions(Section):
    """A task without options of its own."""


@dataclass(frozen=True, eq=False)
class TaskCard:
    """name: the `task:` of a recipe. columns: role -> what it holds (`data.columns` maps roles to the data's columns).

    required: roles that every row must have, each entry a tuple of alternatives (one of which is enough).
    options: the schema of the recipe's `options:` section. metrics: names of modules in `metrics/` that the task can
    feed; default_metrics: those computed unless the recipe says otherwise; best: the metric that chooses the best.
    unit: what a unit of loss is ("token", "example", "image"), for progress lines. packing: what data.packing auto
    means; packings: what the task can do. balance_window: steps that share out padded examples by length, for auto.
    splits: ways its models can be split over ranks ("tensor", "pipeline").
    auto_model: the class of transformers that makes its models, such as AutoModelForCausalLM.
    decodes: examples are decoded when they are fetched (images), which is worth loader processes.
    """

    name: str
    summary: str
    columns: Mapping[str, str]
    required: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...]
    default_metrics: tuple[str, ...]
    best: str
    unit: str
    auto_model: str = ""
    options: type[Section] = NoOptions
    label_smoothing: bool = False
    packing: str = "none"
    packings: tuple[str, ...] = ("none",)
    balance_window: int = 1
    decodes: bool = False
    micro_batch: int = 16  # examples a forward pass on one rank, when the recipe says auto and the share is larger
    splits: tuple[str, ...] = ()
