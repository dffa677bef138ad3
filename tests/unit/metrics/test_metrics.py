"""Tests metrics against scikit-learn and values computed by hand, including cases in which those are undefined."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn import metrics as sk

from finetune.errors import FinetuneError, UserError
from finetune.metrics import NAMES, MetricSet, direction
from finetune.metrics.catalogue import CATALOGUE
from finetune.metrics.metric_set import load

FOLDER = Path(__file__).parents[3] / "finetune" / "metrics"
SCALARS = ("accuracy", "f1_macro", "f1_micro", "precision", "recall", "matthews", "roc_auc")
TABLES = ("confusion_matrix", "per_class")


@pytest.fixture(autouse=True)
def _warnings_fail():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def softmax_rows(rng: np.random.Generator, count: int, classes: int) -> np.ndarray:
    scores = np.exp(rng.normal(size=(count, classes))).astype(np.float32)
    return scores / scores.sum(axis=1, keepdims=True)


def rows_of(predictions, references, scores) -> list[dict]:
    triples = zip(predictions.tolist(), references.tolist(), scores.tolist(), strict=True)
    return [{"prediction": p, "reference": r, "scores": s, "loss": 0.5, "weight": 1} for p, r, s in triples]


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_single_label_metrics_equal_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    references = rng.integers(0, classes, 500)
    scores = softmax_rows(rng, 500, classes)
    scores[np.arange(500), references] += 0.15
    scores /= scores.sum(axis=1, keepdims=True)
    predictions = scores.argmax(axis=1)

    collected = MetricSet(SCALARS, num_labels=classes)
    rows = rows_of(predictions, references, scores)
    for start in range(0, 500, 33):  # the result must not depend on chunks
        collected.add(rows[start : start + 33])
    found = collected.compute().scalars

    auc = (
        sk.roc_auc_score(references, scores[:, 1])
        if classes == 2
        else sk.roc_auc_score(references, scores, multi_class="ovr")
    )
    expected = {
        "accuracy": sk.accuracy_score(references, predictions),
        "f1_macro": sk.f1_score(references, predictions, average="macro"),
        "f1_micro": sk.f1_score(references, predictions, average="micro"),
        "precision": sk.precision_score(references, predictions, average="macro"),
        "recall": sk.recall_score(references, predictions, average="macro"),
        "matthews": sk.matthews_corrcoef(references, predictions),
        "roc_auc": auc,
    }
    assert found == pytest.approx(expected, abs=1e-6)


def test_multi_label_metrics_equal_scikit_learn():
    rng = np.random.default_rng(5)
    references = rng.integers(0, 2, (300, 4))
    scores = np.clip(references * 0.3 + rng.random((300, 4)) * 0.7, 0, 1).astype(np.float32)
    predictions = (scores > 0.5).astype(int)
    collected = MetricSet(SCALARS, num_labels=4, multi_label=True)
    collected.add(rows_of(predictions, references, scores))
    found = collected.compute().scalars
    expected = {
        "accuracy": sk.accuracy_score(references, predictions),
        "f1_macro": sk.f1_score(references, predictions, average="macro"),
        "f1_micro": sk.f1_score(references, predictions, average="micro"),
        "precision": sk.precision_score(references, predictions, average="macro"),
        "recall": sk.recall_score(references, predictions, average="macro"),
        "matthews": np.mean([sk.matthews_corrcoef(references[:, i], predictions[:, i]) for i in range(4)]),
        "roc_auc": sk.roc_auc_score(references, scores, average="macro"),
    }
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_multi_label_task_with_one_label():
    collected = MetricSet(["f1_macro", "accuracy"], num_labels=1, multi_label=True)
    collected.add([{"prediction": [p], "reference": [r]} for p, r in ((1, 1), (1, 0), (0, 0), (0, 0))])
    assert collected.compute().scalars == pytest.approx({"f1_macro": 2 / 3, "accuracy": 0.75})


def test_tables_of_a_small_case_computed_by_hand():
    collected = MetricSet(TABLES, labels=["cat", "dog", "eel"])
    pairs = [(0, 0), (0, 0), (1, 0), (1, 1), (0, 1)]  # (prediction, reference); class eel never occurs
    collected.add([{"prediction": p, "reference": r} for p, r in pairs])
    tables = collected.compute().tables
    assert tables["confusion_matrix"] == (
        ["reference", "cat", "dog", "eel"],
        [["cat", 2, 1, 0], ["dog", 1, 1, 0], ["eel", 0, 0, 0]],
    )
    columns, rows = tables["per_class"]
    assert columns == ["label", "precision", "recall", "f1", "support"]
    assert rows == [["cat", 2 / 3, 2 / 3, 2 / 3, 3], ["dog", 0.5, 0.5, 0.5, 2], ["eel", 0.0, 0.0, 0.0, 0]]


def test_tables_of_a_multi_label_case():
    collected = MetricSet(TABLES, labels=["a", "b"], multi_label=True)
    collected.add(
        [{"prediction": p, "reference": r} for p, r in (([1, 0], [1, 1]), ([1, 1], [0, 1]), ([0, 0], [0, 0]))]
    )
    tables = collected.compute().tables
    assert tables["confusion_matrix"][1] == [["a", 1, 1, 0, 1], ["b", 1, 0, 1, 1]]
    assert tables["per_class"][1] == [["a", 0.5, 1.0, 2 / 3, 1], ["b", 1.0, 0.5, 2 / 3, 2]]


def test_confusions_of_many_classes_are_listed_by_count():
    collected = MetricSet(["confusion_matrix"], num_labels=1000)
    collected.add([{"prediction": 7, "reference": 3}] * 5 + [{"prediction": 9, "reference": 3}] * 8)
    collected.add([{"prediction": 4, "reference": 4}] * 99)
    columns, rows = collected.compute().tables["confusion_matrix"]
    assert columns == ["reference", "predicted", "count"]
    assert rows == [["3", "9", 8], ["3", "7", 5]]


def test_perplexity_weighs_by_tokens():
    collected = MetricSet(["perplexity"])
    collected.add([{"loss": 10.0, "weight": 5}])
    collected.add([{"loss": 1.0, "weight": 5}, {"loss": 0.0, "weight": 0}])
    assert collected.compute().scalars == pytest.approx({"perplexity": math.exp(1.1)})


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e6])
def test_undefined_perplexity_is_absent(loss):
    collected = MetricSet(["perplexity"])
    collected.add([{"loss": loss, "weight": 1}])
    results = collected.compute()
    assert results.scalars == {}
    assert results.undefined == {"perplexity": "there are no tokens, or the loss is not finite or above 709"}


@pytest.mark.parametrize("multi_label", [False, True])
def test_without_examples_there_are_no_scalars_but_complete_tables(multi_label):
    results = MetricSet(NAMES, labels=["a", "b"], multi_label=multi_label).compute()
    assert results.scalars == {} and results.undefined.keys() == set(NAMES) - results.tables.keys()
    assert [row[0] for row in results.tables["per_class"][1]] == ["a", "b"]
    assert sum(map(sum, (row[1:] for row in results.tables["confusion_matrix"][1]))) == 0


def test_a_single_class_gives_all_metrics_but_roc_auc():
    collected = MetricSet(SCALARS, num_labels=3)
    collected.add([{"prediction": 1, "reference": 1, "scores": [0.2, 0.5, 0.3]}] * 4)
    ones = ("accuracy", "f1_macro", "f1_micro", "precision", "recall")
    results = collected.compute()
    assert results.scalars == {**dict.fromkeys(ones, 1.0), "matthews": 0.0}
    assert list(results.undefined) == ["roc_auc"]
    assert "no class has both positive and negative examples" in results.undefined["roc_auc"]


def test_roc_auc_is_absent_if_a_score_is_not_finite():
    collected = MetricSet(["roc_auc"], num_labels=2)
    collected.add([{"scores": [math.nan, 0.5], "reference": 1}, {"scores": [0.5, 0.5], "reference": 0}])
    assert collected.compute().scalars == {}


def test_memory_of_a_million_predictions():
    chunk = [{"prediction": i % 10, "reference": i % 7, "loss": 0.1, "weight": 3} for i in range(10_000)]
    collected = MetricSet(["accuracy", "per_class", "perplexity"], num_labels=10)
    for _ in range(100):
        collected.add(chunk)
    assert collected.nbytes < 1_000_000 * 8 * 1.5 + 10_000  # two int32 columns, grown by half; sums for the losses
    found = collected.compute().scalars
    assert found["accuracy"] == pytest.approx(sum(i % 10 == i % 7 for i in range(10_000)) / 10_000)
    assert found["perplexity"] == pytest.approx(math.exp(0.1 / 3))


def test_every_module_is_an_evaluate_metric_that_agrees_with_the_catalogue():
    assert len(NAMES) == len(CATALOGUE) >= 15
    for name, entry in CATALOGUE.items():
        metric = load(name)
        assert isinstance(metric, evaluate.Metric) and metric.key == name == entry.module
        assert len(metric.inputs) == len(entry.fields)
        assert metric.higher_is_better == {"max": True, "min": False, None: None}[entry.direction]


def test_modules_work_in_evaluate_combine_and_from_a_path():
    combined = evaluate.combine([load("accuracy"), load("f1_macro"), load("roc_auc")])
    found = combined.compute(
        predictions=[0, 1, 1, 0],
        references=[0, 1, 0, 0],
        prediction_scores=[[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [1, 0]],
    )
    assert found == pytest.approx({"accuracy": 0.75, "f1_macro": (0.8 + 2 / 3) / 2, "roc_auc": 1.0})
    from_path = evaluate.load(str(FOLDER / "f1_micro.py"))
    assert from_path.compute(predictions=[0, 1, 1], references=[0, 1, 0]) == pytest.approx({"f1_micro": 2 / 3})
    assert load("accuracy").compute(predictions=[], references=[]) == {"accuracy": None}


def test_direction_is_known_without_importing_evaluate_or_numpy():
    code = (
        "import sys; from finetune.metrics import direction, NAMES\n"
        "assert direction('loss') == direction('perplexity') == 'min' and direction('f1_macro') == 'max' and NAMES\n"
        "assert not {'evaluate', 'numpy', 'sklearn', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parents[1])


def test_errors_name_the_remedy():
    with pytest.raises(UserError, match="unknown metric 'acuracy'") as error:
        MetricSet(["acuracy"])
    assert "Did you mean accuracy?" in error.value.remedy
    with pytest.raises(UserError, match="is a table"):
        direction("per_class")
    with pytest.raises(UserError, match="roc_auc needs `scores`"):
        MetricSet(["roc_auc"]).add([{"reference": 1, "prediction": 1}])
    with pytest.raises(FinetuneError, match=r"reference 3\.\.3 is outside the range of classes, 0\.\.2"):
        MetricSet(["accuracy"], num_labels=3).add([{"prediction": 1, "reference": 3}])
