"""Weights of classes in the loss: options.class_weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.data.columns import nearest_name
from finetune.errors import UserError
from finetune.tasks.classes import listed


def class_counts(labels: Iterable[Any], names: Sequence[str]) -> dict[str, int]:
    """How many examples each class has: {"negative": 3310, "positive": 3610}."""
    counts = dict.fromkeys(names, 0)
    for label in labels:
        for index in label if hasattr(label, "__len__") else [label]:
            counts[names[int(index)]] += 1
    return counts


def weigh_classes(requested: str | Mapping[str, float], counts: Mapping[str, int]) -> list[float] | None:
    """Weight of each class, None where all are 1. requested: "none", "balanced" or weights by name. counts: training images.

    balanced: images / (classes that occur x images of the class), so that the mean weight over the images is 1.
    Raises: UserError for a name that is no class, or a weight that is not positive.
    """
    if requested == "none":
        return None
    if isinstance(requested, str):
        total, occurring = sum(counts.values()), sum(1 for count in counts.values() if count)
        return [total / (occurring * count) if count else 1.0 for count in counts.values()]
    for name, weight in requested.items():
        if name not in counts or weight <= 0:
            what = (
                f"no class is called {name!r}"
                if name not in counts
                else f"the weight {weight} of {name} is not above 0"
            )
            near = nearest_name(name, counts)
            hint = f"Did you mean {near}?" if near and near != name else f"The classes are {listed(list(counts))}."
            raise UserError(what, where="options.class_weights", remedy=hint)
    return [float(requested.get(name, 1.0)) for name in counts]
