"""Intervals, baselines, calibration, threshold curves and the verdict, against values known by other means."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from finetune.tracking.judgement.baselines import (
    COMMON_LABELS,
    MAJORITY,
    MEAN,
    NO_BOX,
    NO_ENTITY,
    NO_LABEL,
    SAME,
    baseline,
)
from finetune.tracking.judgement.calibration import Calibration, calibration
from finetune.tracking.judgement.intervals import Interval, intervals
from finetune.tracking.judgement.predictions import Predictions, prediction_fields, read_predictions
from finetune.tracking.judgement.thresholds import threshold_curves
from finetune.tracking.judgement.verdict import Evaluated, judge, shown_interval
from finetune.tracking.series import Series


def classified(count: int = 400, right: float = 0.8, seed: int = 0) -> Predictions:
    """Two classes, 3 of 4 examples of the first; `right` of the predictions are right."""
    rng = np.random.default_rng(seed)
    reference = (np.arange(count) % 4 == 0).astype(np.int32)
    predicted = np.where(rng.permutation(count) < right * count, reference, 1 - reference).astype(np.int32)
    confident = rng.uniform(0.55, 0.95, count)
    scores = np.where(predicted[:, None] == np.arange(2), confident[:, None], 1 - confident[:, None]).astype(np.float32)
    loss = -np.log(scores[np.arange(count), reference]).astype(np.float64)
    columns = {"prediction": predicted, "reference": reference, "scores": scores, "loss": loss}
    return Predictions({**columns, "weight": np.ones(count, np.int64)}, ["no", "yes"], False)


def test_the_interval_of_accuracy_is_that_of_the_binomial_distribution() -> None:
    found = intervals(classified(400, 0.8), ["accuracy"])
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert found["accuracy"].low == pytest.approx(0.8 - half, abs=0.006)
    assert found["accuracy"].high == pytest.approx(0.8 + half, abs=0.006)
    loss = classified(400, 0.8).columns["loss"]
    half = 1.96 * loss.std() / 20
    assert found["loss"].low == pytest.approx(loss.mean() - half, abs=0.01)


def test_the_same_predictions_have_the_same_intervals_and_few_have_none() -> None:
    assert intervals(classified(), ["f1_macro"]) == intervals(classified(), ["f1_macro"])
    assert intervals(classified(8), ["accuracy"]) == {}


def test_texts_have_an_interval_by_groups() -> None:
    """The same numbers through exact_match, whose values are texts, and through the bootstrap of accuracy."""
    numbers = classified(400, 0.8)
    texts = {}
    for field, source in (("text", "prediction"), ("reference_text", "reference")):
        texts[field] = np.empty(400, object)
        texts[field][:] = [f"class {value}" for value in numbers.columns[source]]
    by_groups = intervals(Predictions(texts, None, False), ["exact_match"])["exact_match"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert (by_groups.high + by_groups.low) / 2 == pytest.approx(0.8, abs=1e-9)
    assert (by_groups.high - by_groups.low) / 2 == pytest.approx(half, rel=0.4)  # 20 groups: its own error is 16 %


def test_the_baseline_answers_with_the_most_frequent_class() -> None:
    name, figures = baseline(classified(400), ["accuracy", "f1_macro", "roc_auc", "loss"])
    assert name == MAJORITY and figures["accuracy"] == 0.75
    assert figures["f1_macro"] == pytest.approx((2 * 0.75 / 1.75) / 2)  # one class found, the other never
    assert figures["roc_auc"] == 0.5
    assert figures["loss"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_baselines_of_several_labels_of_numbers_and_of_texts() -> None:
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.int8)
    name, figures = baseline(Predictions({"reference": labels}, ["a", "b"], True), ["accuracy", "loss"])
    assert name == COMMON_LABELS and figures["accuracy"] == 0.5  # [1, 0] is right for two of four rows
    entropy = -(
        0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    )  # of either label: 3 of 4 rows have one, 1 of 4 the other
    assert figures["loss"] == pytest.approx(entropy)
    rare = np.array(
        [[1, 0], [0, 0], [0, 0]], np.int8
    )  # no row has the second: the shares know it, and lose nothing there
    name, figures = baseline(Predictions({"reference": rare}, ["a", "b"], True), ["accuracy", "loss"])
    assert name == NO_LABEL and figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["loss"] == pytest.approx(-(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3 / 2)
    name, figures = baseline(Predictions({"target": np.array([1.0, 2.0, 6.0])}, None, False), ["mse"])
    assert name == MEAN and figures["mse"] == pytest.approx(14 / 3)
    assert baseline(Predictions({"text": np.array(["a"], object)}, None, False), ["exact_match"]) == ("", {})


def objects(*values: object) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def test_baselines_of_pairs_of_tags_and_of_boxes() -> None:
    rewards = {"chosen_reward": np.array([1.0, 2.0, np.nan]), "rejected_reward": np.array([0.0, 3.0, 1.0])}
    name, values = baseline(Predictions(rewards, None, False), ["preference_accuracy", "reward_margin"])
    assert name == SAME and values == {"preference_accuracy": 0.5, "reward_margin": 0.0}
    tags = {"tags": objects([1, 0], [0]), "reference_tags": objects([1, 0], [0])}
    name, values = baseline(Predictions(tags, ["O", "B-per"], False), ["word_accuracy", "entity_f1"])
    assert name == NO_ENTITY and values == {"word_accuracy": pytest.approx(2 / 3), "entity_f1": 0.0}
    box = {"boxes": [[1, 1, 5, 5]], "labels": [0]}
    boxes = {"detections": objects({**box, "scores": [0.9]}), "objects": objects(box)}
    assert baseline(Predictions(boxes, ["cell"], False), ["map"]) == (NO_BOX, {"map": 0.0})
    numbers = {"value": np.array([1.0, 2.0, 4.0]), "target": np.array([1.0, 2.0, 3.0])}
    assert baseline(Predictions(numbers, None, False), ["pearson"]) == (MEAN, {"pearson": 0.0})


def test_where_all_are_right_the_interval_is_that_of_an_event_not_seen() -> None:
    found = intervals(classified(32, 1.0), ["accuracy"])["accuracy"]
    assert found.high == 1.0 and found.low == pytest.approx(0.8911, abs=1e-4)  # Clopper-Pearson for 32 of 32
    wrong = intervals(classified(32, 0.0), ["accuracy"])["accuracy"]
    assert wrong.low == 0.0 and wrong.high == pytest.approx(0.1089, abs=1e-4)


def test_calibration_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], np.float32)
    columns = {"scores": scores, "prediction": np.array([0, 0, 1, 1]), "reference": np.array([0, 1, 1, 1])}
    found = calibration(Predictions(columns, ["a", "b"], False))
    assert found is not None and found.error == pytest.approx(0.5 * 0.4 + 0.5 * 0.4, abs=1e-6)
    np.testing.assert_allclose(found.accuracy, [1.0, 0.5])
    np.testing.assert_allclose(found.confidence, [0.6, 0.9], atol=1e-6)
    assert calibration(Predictions({**columns, "scores": scores * 3}, ["a", "b"], False)) is None


def test_threshold_curves_of_two_and_of_many_classes() -> None:
    perfect = classified(100, 1.0)
    roc, precision = threshold_curves(perfect)
    assert [curve.label for curve in roc] == ["yes"]
    assert roc[0].area == 1.0 and precision[0].area == pytest.approx(1.0)
    assert (roc[0].across[0], roc[0].up[-1]) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    columns = {"scores": rng.uniform(size=(5_000, 9)).astype(np.float32), "reference": rng.integers(0, 8, 5_000)}
    roc, precision = threshold_curves(Predictions(columns, None, False))
    assert len(roc) == 6 and all(len(curve.across) <= 200 for curve in [*roc, *precision])
    assert all(abs(curve.area - 0.5) < 0.05 for curve in roc)  # scores that say nothing


def series(*values: float) -> Series:
    steps = np.arange(1, len(values) + 1, dtype=np.float64)
    return Series(steps, steps, np.asarray(values, np.float64))


def evaluated(*values: float, best: int, baselines: dict[str, float], examples: int = 400) -> Evaluated:
    return Evaluated(
        "accuracy", "max", values, best, baselines, intervals(classified(), ["accuracy"])["accuracy"], examples
    )


def test_a_good_run_that_may_go_on() -> None:
    verdict = judge(
        evaluated(0.6, 0.7, 0.8, best=2, baselines={MAJORITY: 0.5}),
        validation_loss=series(1, 0.8, 0.7),
    )
    assert verdict.mark == "good" and verdict.line.startswith("The model learned: accuracy 0.8 (95 % interval 0.76")
    assert "still improving" in " ".join(verdict.reasons) and "Train longer" in verdict.next_steps[0]


def test_an_over_fitted_run_whose_best_checkpoint_came_early() -> None:
    verdict = judge(
        evaluated(0.8, 0.7, 0.6, best=0, baselines={MAJORITY: 0.5}),
        validation_loss=series(0.5, 0.8, 1.2),
    )
    assert verdict.mark == "good"  # the best weights are kept
    assert any(
        reason.startswith("over-fitting: the validation loss rose from 0.5 (epoch 1) to 1.2")
        for reason in verdict.reasons
    )
    assert "number 1" in " ".join(verdict.reasons)


@pytest.mark.parametrize(("reference", "mark"), [(0.79, "fair"), (0.85, "bad")])
def test_a_run_at_its_baseline(reference: float, mark: str) -> None:
    verdict = judge(evaluated(0.8, best=0, baselines={"untrained": 0.1, MAJORITY: reference}), validation_loss=None)
    assert verdict.mark == mark and MAJORITY in verdict.line


def test_what_cannot_be_judged_is_said() -> None:
    assert judge(None, validation_loss=None).mark == "unknown"
    assert "data.validation" in judge(None, validation_loss=None).next_steps[0]
    assert not judge(None, validation_loss=None, has_validation=True).next_steps, "it has such data already"
    assert judge(None, validation_loss=None, metric="pearson").line.startswith("Nothing was evaluated yet")
    undefined = judge(None, validation_loss=series(1.0, 0.9), metric="pearson")
    assert "pearson chooses the best checkpoint, but is undefined in every evaluation" in undefined.line
    twice = judge(evaluated(0.5, 0.8, best=1, baselines={}), validation_loss=series(1.0, 0.9, 0.8, 0.7))
    assert any("is undefined in 2 of 4 evaluations" in reason for reason in twice.reasons)
    alone = judge(
        evaluated(0.8, best=0, baselines={}, examples=50), validation_loss=None, calibration=calibrated(0.9, 0.5)
    )
    assert "no baseline" in alone.line and len(alone.reasons) == 2


def calibrated(confidence: float, accuracy: float) -> Calibration:
    return Calibration(abs(confidence - accuracy), np.array([confidence]), np.array([accuracy]), np.array([1.0]))


@pytest.mark.parametrize(
    ("confidence", "advice"), [(0.9, "too high: label smoothing"), (0.2, "too low: training longer")]
)
def test_the_advice_on_scores_depends_on_their_side(confidence: float, advice: str) -> None:
    run = evaluated(0.8, best=0, baselines={MAJORITY: 0.5})
    assert advice in judge(run, validation_loss=None, calibration=calibrated(confidence, 0.5)).next_steps[0]


def test_a_run_at_its_baseline_whose_loss_still_falls_is_to_go_on() -> None:
    run = evaluated(0.4, 0.4, best=0, baselines={MAJORITY: 0.85})
    assert "training.learning_rate" in judge(run, validation_loss=series(1.36, 1.16)).next_steps[0]
    assert not any("longer" in step for step in judge(run, validation_loss=series(1.36, 1.359)).next_steps)


def test_predictions_are_read_back_as_the_metrics_take_them(tmp_path: Path) -> None:
    path = tmp_path / "validation-step-00000002.jsonl"
    rows = [
        {"id": i, "prediction": i % 2, "scores": [0.4, 0.6], "reference": 1, "loss": 0.5, "weight": 1} for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_predictions(path, prediction_fields(["accuracy", "exact_match"]), ["a", "b"])
    assert found is not None and len(found) == 4 and not found.multi_label
    assert set(found.columns) == {"prediction", "scores", "reference", "loss", "weight"}
    assert found.columns["prediction"].dtype == np.int32 and found.columns["scores"].shape == (4, 2)
    path.write_text(path.read_text(encoding="utf-8") + "{half", encoding="utf-8")
    assert read_predictions(path, prediction_fields([]), []) is None
    assert read_predictions(tmp_path / "none.jsonl", ["loss"], []) is None


def test_an_interval_is_shown_with_the_digits_that_tell_its_ends_apart() -> None:
    assert shown_interval(0.8612, Interval(0.84, 0.88)) == "0.861 (95 % interval 0.84 to 0.88)"
    assert shown_interval(1.0045, Interval(1.0044, 1.0046)) == "1.0045 (95 % interval 1.0044 to 1.0046)"
    assert shown_interval(1.0, Interval(1.0, 1.0)) == "1 (95 % interval 1 to 1)"
    assert shown_interval(12.345, None) == "12.3"


def test_the_target_of_sequence_to_sequence_is_a_text_and_hides_no_figure(tmp_path: Path) -> None:
    file = tmp_path / "validation-step-00000001.jsonl"
    row = {"id": 1, "text": "a dog", "reference_text": "a dog", "target": "a dog", "loss": 2.0, "weight": 4}
    file.write_text("".join(json.dumps({**row, "id": index}) + "\n" for index in range(40)), encoding="utf-8")
    found = read_predictions(file, prediction_fields(["exact_match", "perplexity"]), ())
    assert found is not None and len(found) == 40 and "target" not in found.columns
    assert set(intervals(found, ["exact_match", "perplexity"])) == {"loss", "exact_match", "perplexity"}


@pytest.mark.parametrize(("mse", "mark"), [(3.5, "fair"), (0.9, "good")])
def test_numbers_that_follow_the_targets_from_afar_are_no_good_answers(mse: float, mark: str) -> None:
    run = Evaluated("pearson", "max", [0.4], 0, {"always the mean": 0.0}, None, 400, {"mse": (mse, 1.145)})
    verdict = judge(run, validation_loss=None)
    assert verdict.mark == mark and verdict.line.startswith("The model learned: pearson 0.4")
    told = [reason for reason in verdict.reasons if "further from the targets" in reason]
    assert told == (
        ["the answers are further from the targets than the baseline's: mse (3.5 against 1.15)"] * (mark == "fair")
    )
    assert ("evaluation.best=mse" in verdict.next_steps[0]) == (mark == "fair")
