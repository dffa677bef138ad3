"""Proves that a hub which does not answer is told, with what is taken for its answer."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from finetune.data.sources.identity import hub_commit


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("is_offline", [True, False])
def test_a_hub_that_does_not_answer_is_told(tmp_path: Path, monkeypatch, is_cached: bool, is_offline: bool) -> None:
    def refuse(self: object, name: str, **options: object) -> None:
        raise TimeoutError(f"no answer on {name}\nafter a while")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    if is_cached:
        reference = tmp_path / "datasets--owner--set/refs/main"
        reference.parent.mkdir(parents=True)
        reference.write_text("abc123\n")
    told: list[str] = []
    assert hub_commit("owner/set", "main", "dataset", told.append) == ("abc123" if is_cached else "main")
    if is_offline:  # as was asked for
        assert not told
        return
    (line,) = told
    assert "which commit main of the dataset owner/set is (TimeoutError: no answer on owner/set)" in line
    assert line.endswith("local cache is taken" if is_cached else "which is not noticed")
