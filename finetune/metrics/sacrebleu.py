"""BLEU over the whole set, tokenised by sacrebleu's standard (13a), so that figures compare; 0 to 100."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import sacrebleu

from finetune.metrics.metric import LocalMetric


class Sacrebleu(LocalMetric):
    """texts, reference_texts: [examples]. None without examples."""

    inputs: ClassVar[tuple[str, ...]] = ("texts", "reference_texts")
    description = "sacrebleu's corpus BLEU."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        texts, references = (list(column) for column in inputs)
        return float(sacrebleu.corpus_bleu(texts, [references]).score) if texts else None
