"""ROUGE-1: F1 of unigrams of words after stemming, averaged over examples; 0 to 1."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from finetune.metrics.metric import LocalMetric


class Rouge1(LocalMetric):
    """texts, reference_texts: strings [examples]. None without examples."""

    inputs: ClassVar[tuple[str, ...]] = ("texts", "reference_texts")
    description = "Mean ROUGE-1 F1: unigrams of words."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        texts, references = (list(column) for column in inputs)
        scorer = RougeScorer(["rouge1"], use_stemmer=True)
        figures = [
            scorer.score(reference, text)["rouge1"].fmeasure for text, reference in zip(texts, references, strict=True)
        ]
        return float(np.mean(figures)) if figures else None
