"""BLEU over the corpus, 0 to 100, with sacrebleu's default tokenization (13a), so that values are comparable."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import sacrebleu

from finetune.metrics.metric import LocalMetric


class Sacrebleu(LocalMetric):
    """texts, reference_texts: strings [examples]. None without examples."""

    inputs: ClassVar[tuple[str, ...]] = ("texts", "reference_texts")
    description = "sacrebleu's corpus BLEU."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        texts, references = (list(column) for column in inputs)
        return float(sacrebleu.corpus_bleu(texts, [references]).score) if texts else None
