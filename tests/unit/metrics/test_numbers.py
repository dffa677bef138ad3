"""Tests metrics of regression and preferences against SciPy, scikit-learn, and values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from finetune.metrics import MetricSet


def test_correlations_and_errors() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5, 200).astype(float)  # ties
    values = targets + rng.normal(size=200)
    collected = MetricSet(["pearson", "spearman", "mse", "mae"])
    rows = [{"value": value, "target": target} for value, target in zip(values, targets, strict=True)]
    collected.add(rows[:77])
    collected.add(rows[77:])
    found = collected.compute().scalars
    assert found["pearson"] == pytest.approx(stats.pearsonr(values, targets)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(values, targets)[0])
    assert found["mse"] == pytest.approx(sk.mean_squared_error(targets, values))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(targets, values))


def test_undefined_metrics_are_absent() -> None:
    collected = MetricSet(["pearson", "spearman", "mse"])
    assert collected.compute().scalars == {}
    collected.add([{"value": 1.0, "target": 2.0}, {"value": 1.0, "target": 3.0}])  # a constant prediction
    assert collected.compute().scalars == {"mse": 2.5}


def test_preferences() -> None:
    collected = MetricSet(["preference_accuracy", "reward_margin", "chosen_reward", "rejected_reward"])
    pairs = [(2.0, 1.0), (0.0, 1.5), (1.0, 1.0), (3.0, -1.0)]
    collected.add([{"chosen_reward": chosen, "rejected_reward": rejected} for chosen, rejected in pairs])
    expected = {"preference_accuracy": 2.5 / 4, "reward_margin": 0.875, "chosen_reward": 1.5, "rejected_reward": 0.625}
    assert collected.compute().scalars == pytest.approx(expected)
