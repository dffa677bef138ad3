"""Proves that a recipe takes over the values of the adapter that it continues, and names those that contradict it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.app.starting import take_adapter_values
from finetune.errors import RecipeFaults
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.tasks import CARDS

SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"]}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "config.json").write_text("{}")
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, "modules_to_save": ["score"]}))
    return folder


def opened(folder: Path, adapter: Path, section: dict[str, Any] | None, sets: list[str] | None = None) -> LoadedRecipe:
    (folder / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = {"name": "a", "task": "causal_lm", "model": {"source": str(adapter)}, "data": {"train": "a.jsonl"}}
    (folder / "a.yaml").write_text(json.dumps({**recipe, **({} if section is None else {"adapter": section})}))
    return take_adapter_values(load_recipe(folder / "a.yaml", sets or [], CARDS))


def test_values_that_are_left_out_are_the_adapters(tmp_path: Path, adapter: Path) -> None:
    loaded = opened(tmp_path, adapter, {"dropout": 0.0})
    section = loaded.recipe.adapter
    assert section is not None
    assert (section.rank, section.alpha, section.dropout, section.kind) == (4, 8.0, 0.0, "lora")
    assert (section.targets, section.save_modules) == (["q_proj", "v_proj"], ["score"])
    assert loaded.origins["adapter.rank"] == f"the adapter {adapter}"
    (tmp_path / "stored.yaml").write_text(loaded.dump_yaml())  # as the run folder keeps it, it says the same
    assert take_adapter_values(load_recipe(tmp_path / "stored.yaml", [], CARDS)).recipe == loaded.recipe


def test_values_that_contradict_it_are_named_together(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(RecipeFaults) as caught:
        opened(tmp_path, adapter, {"rank": 16, "kind": "dora"}, ["adapter.alpha=3"])
    assert {fault.key for fault in caught.value.faults} == {"adapter.rank", "adapter.kind", "adapter.alpha"}
    assert all("adapter.start: merge" in fault.allowed for fault in caught.value.faults)


@pytest.mark.parametrize("section", [None, {"start": "merge", "rank": 16}])
def test_a_merged_start_has_its_own_values(tmp_path: Path, adapter: Path, section: dict[str, Any] | None) -> None:
    loaded = opened(tmp_path, adapter, section)
    assert loaded.recipe.adapter == (None if section is None else loaded.recipe.adapter)
    assert section is None or (loaded.recipe.adapter is not None and loaded.recipe.adapter.rank == 16)
