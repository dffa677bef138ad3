"""chrF2: F-score of character n-grams over the corpus, 0 to 100. Suits inflected languages better than BLEU."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import sacrebleu

from finetune.metrics.metric import LocalMetric


class Chrf(LocalMetric):
    """texts, reference_texts: strings [examples]. None without examples."""

    inputs: ClassVar[tuple[str, ...]] = ("texts", "reference_texts")
    description = "sacrebleu's corpus chrF2."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        texts, references = (list(column) for column in inputs)
        return float(sacrebleu.corpus_chrf(texts, [references]).score) if texts else None
