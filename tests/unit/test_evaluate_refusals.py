"""Proves that `evaluate` says what to use for a folder that is a model and no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.app.evaluate import evaluate
from finetune.errors import UserError


@pytest.mark.parametrize("held", ["config.json", "adapter_config.json"])
def test_an_exported_model_leads_to_predict(tmp_path: Path, held: str) -> None:
    (tmp_path / held).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="a model, not a run folder") as error:
        evaluate(run=tmp_path, checkpoint="last", split="", data=["a.jsonl"], name="", sets=[], processes=None)
    assert f"finetune predict {tmp_path} --data a.jsonl --output" in error.value.remedy
    (tmp_path / held).unlink()
    with pytest.raises(UserError, match="not a run folder: it has no run"):
        evaluate(run=tmp_path, checkpoint="last", split="", data=[], name="", sets=[], processes=None)
