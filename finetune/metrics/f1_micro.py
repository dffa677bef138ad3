"""F1 over all decisions together: each example weighs the same. With one label an example it equals accuracy."""

from __future__ import annotations

import numpy as np

from finetune.metrics.counts import score
from finetune.metrics.metric import LocalMetric


class F1Micro(LocalMetric):
    description = "F1 over the sum of all classes' counts."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        return score("f1", "micro", *inputs)
