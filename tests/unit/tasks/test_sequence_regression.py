"""Proves that numbers are read as numbers, that each loss is the one it names, and that what is none is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.app.workers.context import plan_alone
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError
from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS, TASKS
from finetune.tasks.task import Kit

TASK = TASKS["sequence_regression"]
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _read(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Kit:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = {"source": "bert", "init": "config", "tokenizer": "train:300", "config": TINY}
    recipe = recipe_type(CARDS[TASK.card.name])(
        name="x", task=TASK.card.name, model=model, data={"train": str(path)}, options=options
    )
    return TASK.read(plan_alone(recipe), open_tables(recipe, TASK.card))


ROWS = [{"sentence1": "a b", "sentence2": "c", "label": 3}, {"sentence1": "d", "sentence2": "e f", "label": "-0.5"}]


@pytest.mark.parametrize(("loss", "by_hand"), [("mse", 4.25), ("mae", 2.5), ("huber", 1.5 + 0.125)])
def test_the_loss_that_is_asked_for(tmp_path: Path, loss: str, by_hand: float) -> None:
    kit = _read(tmp_path, ROWS, loss=loss)
    batch = TASK.collate(kit, [kit.examples["train"][0], kit.examples["train"][1]])
    assert batch.targets["labels"].tolist() == [3.0, -0.5]
    outputs = TASK.forward(TASK.build(kit), batch)
    outputs.logits = torch.tensor([[1.0], [0.0]])
    assert TASK.loss_sum(kit, outputs, batch).item() == pytest.approx(by_hand)
    assert [prediction.values for prediction in TASK.predict(kit, outputs, batch)] == [
        {"value": 1.0, "target": 3.0},
        {"value": 0.0, "target": -0.5},
    ]


def test_what_is_no_number_is_told_with_its_place(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "label": "many"}, {**ROWS[0], "label": "nan"}, {**ROWS[0], "label": True}]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, rows)
    for line, value in ((3, "'many'"), (4, "'nan'"), (5, "True")):
        assert f"train.jsonl:{line}: label {value} is not a number" in str(caught.value)
