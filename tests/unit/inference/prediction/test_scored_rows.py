"""Proves the metrics of a prediction against values computed by hand, and that what cannot be computed is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.inference.prediction.scored_rows import describe_measured, measure_scored


def write(path: Path, rows: list[tuple[dict[str, Any], dict[str, Any], float, int]]) -> Path:
    lines = [
        {"row": index, "values": values, "score": {"loss": loss, "weight": weight, "reference": reference, "shown": {}}}
        for index, (values, reference, loss, weight) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_figures_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = [({"prediction": index % 2}, {"reference": 1}, 0.5, 1) for index in range(3001)]
    measured = measure_scored(write(tmp_path / "x", rows), ["accuracy"], {"labels": ["a", "b"]})
    assert measured.rows == 3001 and measured.left_out == []
    assert measured.scalars == {"loss": pytest.approx(0.5), "accuracy": pytest.approx(1500 / 3001)}
    (line,) = describe_measured(measured, 4000)
    assert "3,001 of 4,000 rows" in line and "accuracy 0.4998" in line


def test_the_loss_is_per_unit_and_missing_fields_are_named(tmp_path: Path) -> None:
    rows: list[Any] = [({"text": "a"}, {}, 4.0, 2), ({"text": "b"}, {}, 2.0, 4)]
    measured = measure_scored(write(tmp_path / "x", rows), ["perplexity", "exact_match"], {})
    assert measured.scalars["loss"] == 1.0 and measured.scalars["perplexity"] == pytest.approx(2.718281828)
    assert measured.left_out == ["exact_match"]
    assert "exact_match" in describe_measured(measured, 2)[1]


def test_nothing_scored_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("none", "empty"):
        measured = measure_scored(tmp_path / name, ["accuracy"], {})
        assert measured.rows == 0 and describe_measured(measured, 5) == []
