"""How long the examples of a training are and how its classes are balanced, small enough for run.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.data.table import Examples

BINS = 24  # of a histogram of lengths
MAX_CLASSES = 200  # named for each split, the most frequent ones


def length_histograms(datasets: Mapping[str, Examples]) -> dict[str, Any]:
    """{"edges": [BINS + 1], "counts": {split: [BINS]}} in tokens, over the lengths of all splits; {} where all examples are
    equally long, as images of one size are.
    """
    costs = {split: np.asarray(examples.costs, np.int64) for split, examples in datasets.items() if len(examples)}
    if not costs:
        return {}
    low, high = min(int(one.min()) for one in costs.values()), max(int(one.max()) for one in costs.values())
    if low == high:
        return {}
    edges = np.unique(np.linspace(low, high + 1, min(BINS, high + 1 - low) + 1).round().astype(np.int64))
    counts = {split: np.histogram(values, edges)[0].tolist() for split, values in costs.items()}
    return {"edges": edges.tolist(), "counts": counts}


def class_balance(facts: Mapping[str, Any], datasets: Mapping[str, Examples]) -> dict[str, Any]:
    """{"classes": how many there are, "counts": {split: {class: examples, objects or words}}}; {} for a task without.

    facts: of the preparation, which counted them under "<split> classes".
    """
    found = {split: facts.get(f"{split} classes") for split in datasets}
    counted = {split: counts for split, counts in found.items() if isinstance(counts, Mapping)}
    if not counted:
        return {}
    total: dict[str, int] = {}
    for counts in counted.values():
        for name, count in counts.items():
            total[name] = total.get(name, 0) + int(count)
    kept = sorted(total, key=lambda name: -total[name])[:MAX_CLASSES]
    return {
        "classes": len(total),
        "counts": {split: {name: int(counts.get(name, 0)) for name in kept} for split, counts in counted.items()},
    }
