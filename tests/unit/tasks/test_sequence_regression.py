"""Proves that numbers are read as numbers, that each loss is the one it names, and that what is none is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.errors import UserError
from tests.prepared import Prepared, prepare_rows

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _read(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Prepared:
    model = {"source": "bert", "init": "config", "tokenizer": "train:300", "config": TINY}
    return prepare_rows(folder, rows, task="sequence_regression", model=model, options=options)


ROWS = [{"sentence1": "a b", "sentence2": "c", "label": 3}, {"sentence1": "d", "sentence2": "e f", "label": "-0.5"}]


@pytest.mark.parametrize(("loss", "by_hand"), [("mse", 4.25), ("mae", 2.5), ("huber", 1.5 + 0.125)])
def test_the_loss_that_is_asked_for(tmp_path: Path, loss: str, by_hand: float) -> None:
    prepared = _read(tmp_path, ROWS, loss=loss)
    batch = prepared.batch([0, 1])
    assert batch.targets["labels"].tolist() == [3.0, -0.5]
    outputs = prepared.task.forward(prepared.build(), batch)
    outputs.logits = torch.tensor([[1.0], [0.0]])
    assert prepared.task.loss_sum(prepared.artifacts, outputs, batch).item() == pytest.approx(by_hand)
    assert [answer.values for answer in prepared.answers(outputs, batch)] == [{"value": 1.0}, {"value": 0.0}]
    scores = prepared.scores(outputs, batch)
    assert [score.reference for score in scores] == [{"target": 3.0}, {"target": -0.5}]
    assert sum(score.loss for score in scores) == pytest.approx(by_hand)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_targets_in_float64_have_the_same_gradient(tmp_path: Path, loss: str) -> None:
    """The reference loop of `finetune verify` has them; torch 2.11 does not mix dtypes here."""
    prepared = _read(tmp_path, ROWS, loss=loss)
    batch, gradients = prepared.batch([0, 1]), []
    outputs = prepared.task.forward(prepared.build(), batch)
    for dtype in (torch.float32, torch.float64):
        outputs.logits = torch.tensor([[1.0], [0.0]], dtype=dtype, requires_grad=True)
        batch.targets["labels"] = batch.targets["labels"].to(dtype)
        prepared.task.loss_sum(prepared.artifacts, outputs, batch).backward()
        gradients.append(outputs.logits.grad.flatten().tolist())
    assert gradients[1] == pytest.approx(gradients[0]) and any(gradients[0])


def test_what_is_no_number_is_reported_with_its_place(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        {**ROWS[0], "label": "many"},
        {**ROWS[0], "label": "nan"},
        {**ROWS[0], "label": True},
        {**ROWS[0], "label": "1_000"},
    ]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, rows)
    for line, value in ((3, "'many'"), (4, "'nan'"), (5, "True"), (6, "'1_000'")):
        assert f"train.jsonl:{line}: label {value} is not a number" in str(caught.value)


def test_numbers_that_end_a_training_later_are_reported_before_it(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label} for label in (1e18, 1e39, "-1e30", [0.5, 1.0], 10**400)]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, rows)
    (first, second, third, fourth) = [line for line in str(caught.value).splitlines() if "train.jsonl:" in line]
    assert first.endswith("train.jsonl:2: label 1e+39 is too large: its square is beyond float32; scale the numbers")
    assert "train.jsonl:3: label -1e+30 is too large" in second
    assert "train.jsonl:4: label is a list of 2 values, but one number is learned" in third
    assert "train.jsonl:5: label is an integer beyond float64" in fourth


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 2.5, 5], ""),
        ([3, "3.0", 3], "all 3 numbers in label are 3: there is nothing to learn"),
        ([1e6, 9e6, "5e6"], "the numbers in label are far from 0 (mean 5e+06, standard deviation 3.27e+06)"),
    ],
)
def test_numbers_that_a_model_cannot_learn_are_told(tmp_path: Path, labels: list[Any], told: str) -> None:
    notes = _read(tmp_path, [{"text": "a", "label": label} for label in labels]).facts.notes
    found = [note for note in notes if "numbers" in note]
    assert (len(found) == 1 and told in found[0]) if told else not found


def test_a_decimal_comma_is_named(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label} for label in ("7755374,81", "1.234,5", "1,2,3", "12%")]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, rows)
    lines = [line for line in str(caught.value).splitlines() if "is not a number" in line]
    assert [line.endswith("write its decimal comma as a point") for line in lines] == [True, True, False, False]
