"""Tests metrics of generated texts against sacrebleu and rouge_score, and exact match by hand."""

from __future__ import annotations

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from finetune.metrics import MetricSet
from finetune.metrics.catalogue import needs_text

NAMES = ("sacrebleu", "chrf", "rouge1", "rouge2", "rouge_l", "exact_match")
TEXTS = ["a dog runs over the grass", "two men in hats", "rain"]
WANTED = ["a dog runs across the grass", "two men wearing hats", "rain "]


def test_metrics_equal_those_of_the_libraries() -> None:
    collected = MetricSet(NAMES)
    rows = [{"text": text, "reference_text": wanted} for text, wanted in zip(TEXTS, WANTED, strict=True)]
    collected.add(rows[:1])
    collected.add(rows[1:])
    found = collected.compute().scalars
    assert found["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(TEXTS, [WANTED]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(TEXTS, [WANTED]).score)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(wanted, text) for text, wanted in zip(TEXTS, WANTED, strict=True)]
    for ours, theirs in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")):
        assert found[ours] == pytest.approx(sum(score[theirs].fmeasure for score in scores) / 3)
    assert found["exact_match"] == pytest.approx(1 / 3)


def test_only_text_metrics_need_generation() -> None:
    assert needs_text(["perplexity", "chrf"]) and not needs_text(["perplexity", "accuracy", "entity_f1"])
    assert MetricSet(NAMES).compute().scalars == {}
