"""Tests that every metric works alone, as a module of `evaluate`: with natural inputs, the usual names and in parts.

The expected values are scikit-learn's, SciPy's, sacrebleu's or seqeval's, or computed by hand.
"""

from __future__ import annotations

import math
from typing import Any

import evaluate
import numpy as np
import pytest
import sacrebleu
import torch
from scipy import stats
from sklearn import metrics as sk

from finetune.metrics import NAMES
from finetune.metrics.metric_set import load

PREDICTED, TRUE = [0, 2, 1, 1, 0, 2], [0, 1, 1, 1, 2, 2]
SCORES = [[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]]
VALUES, TARGETS = [1.0, 2.5, 3.0, 0.0], [1.5, 2.0, 4.0, 0.5]
TEXTS, WANTED = ["a dog runs over the grass", "two men in hats"], ["a dog runs across the grass", "two men in hats"]
TAGS = [["B-LOC", "I-LOC", "O", "O"], ["O", "B-PER"], ["B-PER"]]
TRUE_TAGS = [["B-LOC", "I-LOC", "O", "B-PER"], ["O", "B-PER"], ["O"]]
CHOSEN, REJECTED = [2.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0]
BOX = [10.0, 10.0, 40.0, 40.0]


def sk_both(function: Any, **options: Any) -> Any:
    return function(TRUE, PREDICTED, **options)


# name: (inputs under our names, expected figure; None for tables, which have tests of their own below)
CASES: dict[str, tuple[dict[str, Any], float | None]] = {
    "accuracy": ({"predictions": PREDICTED, "references": TRUE}, sk_both(sk.accuracy_score)),
    "f1_macro": ({"predictions": PREDICTED, "references": TRUE}, sk_both(sk.f1_score, average="macro")),
    "f1_micro": ({"predictions": PREDICTED, "references": TRUE}, sk_both(sk.f1_score, average="micro")),
    "precision": ({"predictions": PREDICTED, "references": TRUE}, sk_both(sk.precision_score, average="macro")),
    "recall": ({"predictions": PREDICTED, "references": TRUE}, sk_both(sk.recall_score, average="macro")),
    "matthews": ({"predictions": PREDICTED, "references": TRUE}, sk_both(sk.matthews_corrcoef)),
    "roc_auc": (
        {"prediction_scores": SCORES, "references": [0, 1, 1, 1]},
        sk.roc_auc_score([0, 1, 1, 1], [row[1] for row in SCORES]),
    ),
    "confusion_matrix": ({"predictions": PREDICTED, "references": TRUE}, None),
    "per_class": ({"predictions": PREDICTED, "references": TRUE}, None),
    "perplexity": ({"loss_sums": [10.0, 1.0], "weights": [5, 6]}, math.exp(1.0)),
    "pearson": ({"values": VALUES, "targets": TARGETS}, stats.pearsonr(VALUES, TARGETS)[0]),
    "spearman": ({"values": VALUES, "targets": TARGETS}, stats.spearmanr(VALUES, TARGETS)[0]),
    "mse": ({"values": VALUES, "targets": TARGETS}, sk.mean_squared_error(TARGETS, VALUES)),
    "mae": ({"values": VALUES, "targets": TARGETS}, sk.mean_absolute_error(TARGETS, VALUES)),
    "sacrebleu": ({"texts": TEXTS, "reference_texts": WANTED}, sacrebleu.corpus_bleu(TEXTS, [WANTED]).score),
    "chrf": ({"texts": TEXTS, "reference_texts": WANTED}, sacrebleu.corpus_chrf(TEXTS, [WANTED]).score),
    "rouge1": ({"texts": TEXTS, "reference_texts": WANTED}, (5 / 6 + 1) / 2),
    "rouge2": ({"texts": TEXTS, "reference_texts": WANTED}, (3 / 5 + 1) / 2),
    "rouge_l": ({"texts": TEXTS, "reference_texts": WANTED}, (5 / 6 + 1) / 2),
    "exact_match": ({"texts": TEXTS, "reference_texts": WANTED}, 0.5),
    "entity_precision": ({"tags": TAGS, "reference_tags": TRUE_TAGS}, 2 / 3),
    "entity_recall": ({"tags": TAGS, "reference_tags": TRUE_TAGS}, 2 / 3),
    "entity_f1": ({"tags": TAGS, "reference_tags": TRUE_TAGS}, 2 / 3),
    "word_accuracy": ({"tags": TAGS, "reference_tags": TRUE_TAGS}, 5 / 7),
    "per_entity": ({"tags": TAGS, "reference_tags": TRUE_TAGS}, None),
    "preference_accuracy": ({"chosen_rewards": CHOSEN, "rejected_rewards": REJECTED}, 2.5 / 4),
    "reward_margin": ({"chosen_rewards": CHOSEN, "rejected_rewards": REJECTED}, 2.5 / 4),
    "chosen_reward": ({"chosen_rewards": CHOSEN}, 4.5 / 4),
    "rejected_reward": ({"rejected_rewards": REJECTED}, 0.5),
    "map": (
        {
            "detections": [{"boxes": [BOX], "labels": [0], "scores": [0.9]}, {"boxes": [], "labels": [], "scores": []}],
            "objects": [{"boxes": [BOX], "labels": [0]}, {"boxes": [], "labels": []}],
        },
        1.0,
    ),
}
USUAL = {
    "prediction_scores": "predictions", "values": "predictions", "tags": "predictions", "texts": "predictions",
    "chosen_rewards": "predictions", "detections": "predictions", "targets": "references",
    "reference_tags": "references", "reference_texts": "references", "rejected_rewards": "references",
    "objects": "references",
}  # fmt: skip


def renamed(inputs: dict[str, Any]) -> dict[str, Any]:
    return {USUAL.get(name, name): values for name, values in inputs.items()}


def test_every_metric_has_a_case() -> None:
    assert set(CASES) == set(NAMES) and len(NAMES) >= 30


@pytest.mark.parametrize("name", NAMES)
def test_alone_at_once_in_batches_one_by_one_and_under_the_usual_names(name: str) -> None:
    inputs, expected = CASES[name]
    count = len(next(iter(inputs.values())))
    metric = load(name)
    whole = metric.compute(**inputs)
    assert whole.keys() >= {name}
    if expected is not None:
        assert whole[name] == pytest.approx(expected, abs=1e-6)
    assert metric.compute(**renamed(inputs)) == whole  # also: nothing is left of the first
    for start in range(count):
        metric.add_batch(**{key: values[start : start + 1] for key, values in inputs.items()})
    assert len(metric) == count and metric.compute() == whole
    for index in range(count):
        metric.add(**{key: values[index] for key, values in inputs.items()})
    assert metric.compute() == whole
    usual = renamed(inputs)
    if set(usual) <= {"predictions", "references"}:
        for index in range(count):
            metric.add(**{key.removesuffix("s"): values[index] for key, values in usual.items()})
        assert metric.compute() == whole


def test_tables_by_hand() -> None:
    table = load("confusion_matrix").compute(predictions=PREDICTED, references=TRUE)["confusion_matrix"]
    assert table["rows"] == [["0", 1, 0, 0], ["1", 0, 2, 1], ["2", 1, 0, 1]]
    table = load("per_class").compute(predictions=PREDICTED, references=TRUE)["per_class"]
    assert [row[1] for row in table["rows"]] == pytest.approx(sk.precision_score(TRUE, PREDICTED, average=None))
    table = load("per_entity").compute(predictions=TAGS, references=TRUE_TAGS)["per_entity"]
    assert table["rows"] == [["LOC", 1.0, 1.0, 1.0, 1], ["PER", 0.5, 0.5, 0.5, 2]]


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple])
def test_arrays_and_tensors(make: Any) -> None:
    inputs = {"predictions": make(PREDICTED), "references": make(TRUE)}
    assert load("accuracy").compute(**inputs)["accuracy"] == pytest.approx(4 / 6)


def test_classes_may_be_names() -> None:
    names = ["cat", "dog", "eel"]
    inputs = {"predictions": [names[index] for index in PREDICTED], "references": [names[index] for index in TRUE]}
    assert load("f1_macro").compute(**inputs)["f1_macro"] == pytest.approx(CASES["f1_macro"][1])
    table = load("confusion_matrix").compute(**inputs, labels=["eel", "dog", "cat"])["confusion_matrix"]
    assert table["columns"] == ["reference", "eel", "dog", "cat"]
    with pytest.raises(ValueError, match="eel: not among the labels cat, dog"):
        load("accuracy").compute(**inputs, labels=["cat", "dog"])


def test_several_labels_need_no_configuration() -> None:
    predicted, true = [[1, 0], [1, 1], [0, 0]], [[1, 1], [0, 1], [0, 0]]
    assert load("accuracy").compute(predictions=predicted, references=true) == {"accuracy": pytest.approx(1 / 3)}
    found = load("f1_macro").compute(predictions=predicted, references=true)["f1_macro"]
    assert found == pytest.approx(sk.f1_score(true, predicted, average="macro"))
    table = load("confusion_matrix").compute(predictions=predicted, references=true)["confusion_matrix"]
    assert table["columns"][0] == "label" and table["rows"] == [["0", 1, 1, 0, 1], ["1", 1, 0, 1, 1]]


def test_scores_of_the_second_class_alone() -> None:
    scores = [row[1] for row in SCORES]
    assert load("roc_auc").compute(predictions=scores, references=[0, 1, 0, 1]) == {"roc_auc": 1.0}


def test_references_in_lists_of_one_as_the_hub_writes_them() -> None:
    wrapped = [[text] for text in WANTED]
    assert load("sacrebleu").compute(predictions=TEXTS, references=wrapped)["sacrebleu"] == CASES["sacrebleu"][1]
    with pytest.raises(ValueError, match="one text per example"):
        load("sacrebleu").compute(predictions=TEXTS, references=[WANTED, WANTED])


def test_combined_metrics_of_unequal_sentences() -> None:
    combined = evaluate.combine([load("entity_f1"), load("word_accuracy")])
    expected = {"entity_f1": pytest.approx(2 / 3), "word_accuracy": pytest.approx(5 / 7)}
    assert combined.compute(predictions=TAGS, references=TRUE_TAGS) == expected
    assert combined.compute(tags=TAGS, reference_tags=TRUE_TAGS) == expected
    combined.add_batch(predictions=TAGS[:2], references=TRUE_TAGS[:2])
    combined.add(prediction=TAGS[2], reference=TRUE_TAGS[2])
    assert combined.compute() == expected


def test_indices_of_tags_need_their_names() -> None:
    names = ["O", "B-PER", "I-PER"]
    found = load("entity_f1").compute(tags=[[1, 2, 0], [0]], reference_tags=[[1, 2, 0], [1]], labels=names)
    assert found == {"entity_f1": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="give their names"):
        load("entity_f1").compute(tags=[[1, 2]], reference_tags=[[1, 0]])
    assert load("entity_f1").compute(tags=[["0", "3"]], reference_tags=[["0", "3"]]) == {"entity_f1": None}
    found = load("entity_f1").compute(tags=[["0", "B-x", "o"]], reference_tags=[["O", "B-x", "O"]])
    assert found == {"entity_f1": 1.0}  # a zero or a small o among names is no entity


def test_what_does_not_fit_is_reported() -> None:
    with pytest.raises(ValueError, match="3 predictions, 2 references"):
        load("accuracy").compute(predictions=[1, 0, 1], references=[1, 0])
    with pytest.raises(ValueError, match="example 0 has 2 tags, but 1 references"):
        load("entity_f1").compute(tags=[["O", "O"]], reference_tags=[["O"]])
    with pytest.raises(ValueError, match=r"needs reference_tags: it takes tags \(or predictions\) and"):
        load("entity_f1").compute(tags=TAGS)
    with pytest.raises(ValueError, match="no input and no option average"):
        load("f1_macro").compute(predictions=[1], references=[1], average="micro")
    with pytest.raises(ValueError, match="needs predictions, references"):
        load("accuracy").compute()
    with pytest.raises(ValueError, match="whole numbers or names"):
        load("accuracy").compute(predictions=[0.5], references=[1])
    assert load("entity_f1").compute(predictions=[], references=[]) == {"entity_f1": None}
