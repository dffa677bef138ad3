"""Proves that `evaluate` says what to use for a folder that is a model and no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.app.evaluate import evaluate
from finetune.errors import UserError


@pytest.mark.parametrize("held", ["config.json", "adapter_config.json"])
def test_an_exported_model_leads_to_predict(tmp_path: Path, held: str) -> None:
    (tmp_path / held).write_text("{}", encoding="utf-8")
    asked: Any = {
        "run": tmp_path,
        "checkpoint": "last",
        "split": "",
        "read": [],
        "name": "",
        "sets": [],
        "processes": None,
    }
    with pytest.raises(UserError, match="a model, not a run folder") as error:
        evaluate(data=["a.jsonl"], **asked)
    assert f"finetune predict {tmp_path} --data a.jsonl --output" in error.value.remedy
    (tmp_path / held).unlink()
    with pytest.raises(UserError, match="not a run folder: it has no run"):
        evaluate(data=[], **asked)
