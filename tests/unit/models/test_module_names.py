"""Proves that the names which a recipe gives for an adapter are checked without weights, against those of the built model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune.app import adapter_names
from finetune.errors import UserError
from finetune.models.config import load_config
from finetune.models.load import load_model
from finetune.models.module_names import ModuleNames, names_without_weights
from finetune.recipe.model import ModelSection
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.tasks import CARDS
from tests.contract.examples import DFINE

LLAMA = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
RESNET = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}


@pytest.mark.parametrize(
    ("auto_model", "source", "config"),
    [
        ("AutoModelForCausalLM", "llama", LLAMA),
        ("AutoModelForSequenceClassification", "llama", LLAMA),
        ("AutoModelForImageClassification", "resnet", RESNET),
        ("AutoModelForObjectDetection", "d_fine", DFINE),
    ],
)
def test_they_are_those_of_the_model_that_is_loaded(auto_model: str, source: str, config: dict[str, Any]) -> None:
    section = ModelSection(source=source, init="config", config=config)
    auto_class = getattr(transformers, auto_model)
    loaded, _ = load_model(auto_class, section, load_config(section), dtype=torch.float32, seed=1)
    expected = ModuleNames.of(loaded)
    assert names_without_weights(auto_model, section) == expected and expected.carriers


def test_a_class_that_needs_its_weights_is_left_to_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(model: Any, config: Any) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", build)
    section = ModelSection(source="llama", init="config", config=LLAMA)
    assert names_without_weights("AutoModelForCausalLM", section) is None


def _recipe(**adapter: Any) -> Recipe:
    return recipe_type(CARDS["causal_lm"])(
        name="x",
        task="causal_lm",
        model={"source": "llama", "init": "config", "tokenizer": "train:300", "config": LLAMA},
        data={"train": "rows.jsonl"},
        adapter=adapter,
    )


def test_names_are_refused_with_the_nearest_and_looked_up_once_per_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def run_here(target: str, *arguments: Any, doing: str) -> Any:
        asked.append(target)
        return adapter_names.find_names(*arguments)

    monkeypatch.setattr(adapter_names, "run_apart", run_here)
    adapter_names.check_adapter_names(_recipe())
    assert not asked  # all-linear names none
    with pytest.raises(UserError, match=r"adapter\.targets: no module is called 'q_porj'") as caught:
        adapter_names.check_adapter_names(_recipe(targets=["v_proj", "q_porj"]))
    assert "q_proj" in caught.value.remedy
    with pytest.raises(UserError, match=r"adapter\.save_modules: no module is called 'lm_haed'"):
        adapter_names.check_adapter_names(_recipe(save_modules=["lm_haed"]))
    adapter_names.check_adapter_names(_recipe(targets=["layers.0.mlp.up_proj"], save_modules=["embed_tokens", "norm"]))
    assert len(asked) == 1
