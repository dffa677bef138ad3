"""Proves what a model is when its source is an adapter: the adapter on its base, or merged; and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from finetune.errors import UserError
from finetune.models.adapter_source import adapter_of, find_adapter
from finetune.models.adapters import add_adapter, save_adapter
from finetune.models.config import load_config
from finetune.models.continuing import adapt, continue_adapter, write_merged
from finetune.models.load import load_model
from finetune.models.merging import outputs_of, random_inputs
from finetune.models.source import resolve_model
from finetune.recipe.card import ModelSpec
from finetune.recipe.model import AdapterSection, ModelSection
from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, tie_word_embeddings=True)).save_pretrained(
        tmp_path / "base"
    )
    return tmp_path / "base"


def moved(model: Any) -> Any:
    """Every trained weight is moved, as if it had learned something."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.3)
    return model


def trained(base: Path, folder: Path, auto: Any = transformers.AutoModelForCausalLM, **changes: Any) -> Any:
    """An adapter in `folder`; the peft model that it was saved from."""
    options = {"new_head": True, **changes.pop("load", {})} if changes.get("heads") else changes.pop("load", {})
    heads, new_tokens = changes.pop("heads", ()), changes.pop("new_tokens", ())
    settings = changes.pop("settings", {})
    model = ModelSection(source=str(base))
    vocabulary = 40 + len(new_tokens)
    loaded, _ = load_model(
        auto, model, load_config(model, **settings), dtype=torch.float32, seed=1, vocabulary=vocabulary, **options
    )
    section = AdapterSection(**{"rank": 2, "targets": ["q_proj"], **changes})  # type: ignore[arg-type]
    adapted = moved(add_adapter(loaded, section, None, heads, seed=1, new_tokens=new_tokens))
    save_adapter(adapted, folder)
    return adapted


def continued(folder: Path, auto: Any = transformers.AutoModelForCausalLM, **section: Any) -> Any:
    model = ModelSection(source=str(folder))
    loaded, loading = load_model(auto, model, load_config(model), dtype=torch.float32, seed=2)
    assert not loading.missing and not loading.new_head
    source = adapter_of(model)
    assert source is not None
    return continue_adapter(loaded, source, AdapterSection(**section) if section else None)


def same(one: Any, other: Any) -> None:
    inputs = random_inputs(one)
    assert torch.allclose(outputs_of(one, inputs)[0], outputs_of(other, inputs)[0], atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "dora"},
        {"kind": "rslora", "targets": ["embed_tokens", "q_proj"]},
        {"targets": ["lm_head"]},
        {"save_modules": ["embed_tokens"], "new_tokens": (40, 41)},
        {"save_modules": ["lm_head"], "new_tokens": (40, 41)},
        {"new_tokens": (40, 41)},
    ],
    ids=str,
)
def test_the_adapter_is_trained_further_and_merged(base: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    adapted = trained(base, tmp_path / "a", **changes)
    again = continued(tmp_path / "a")
    same(adapted, again)
    names = [{name for name, weight in one.named_parameters() if weight.requires_grad} for one in (adapted, again)]
    assert names[0] == names[1]
    model = ModelSection(source=str(tmp_path / "a"))
    source = adapter_of(model)
    assert source is not None
    compared = write_merged(ModelSpec("AutoModelForCausalLM"), model, source, tmp_path / "merged")
    assert compared.rows == 4 and compared.equal
    same(adapted, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))


def test_a_head_for_other_labels_comes_from_the_adapter(base: Path, tmp_path: Path) -> None:
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "pad_token_id": 0}
    auto = transformers.AutoModelForSequenceClassification
    adapted = trained(base, tmp_path / "a", auto, heads=("score",), settings=labels)
    again = continued(tmp_path / "a", auto)
    same(adapted, again)
    assert again.config.id2label == labels["id2label"]


def test_a_reward_model_begins_from_the_adapter_of_a_language_model(base: Path, tmp_path: Path) -> None:
    adapted = moved(add_adapter(load(base), AdapterSection(rank=2, targets=["q_proj"]), "CAUSAL_LM", (), seed=1))
    save_adapter(adapted, tmp_path / "a")
    auto, model = transformers.AutoModelForSequenceClassification, ModelSection(source=str(tmp_path / "a"))
    source = adapter_of(model)
    assert source is not None
    assert write_merged(ModelSpec(auto.__name__), model, source, tmp_path / "merged").equal
    same(adapted, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    merged = ModelSection(source=str(tmp_path / "merged"))
    config = load_config(merged, num_labels=1)
    assert load_model(auto, merged, config, dtype=torch.float32, seed=2)[1].new_head == ("score",)
    with pytest.raises(UserError, match=r"for another task \(CAUSAL_LM\).*this one \(score\)"):
        load_model(auto, model, load_config(model), dtype=torch.float32, seed=2)


def load(base: Path) -> Any:
    model = ModelSection(source=str(base))
    return load_model(transformers.AutoModelForCausalLM, model, load_config(model), dtype=torch.float32, seed=1)[0]


def test_a_foreign_adapter_has_no_configuration_of_the_model(base: Path, tmp_path: Path) -> None:
    adapted = trained(base, tmp_path / "a")
    (tmp_path / "a" / "config.json").unlink()
    same(adapted, continued(tmp_path / "a"))


def test_the_base_beside_the_adapter_or_relative_to_it_is_found(base: Path, tmp_path: Path) -> None:
    adapted = trained(base, tmp_path / "a")
    edit(tmp_path / "a", base_model_name_or_path="../base")
    same(adapted, continued(tmp_path / "a"))
    shutil.move(base, tmp_path / "a" / "base")
    edit(tmp_path / "a", base_model_name_or_path="/nowhere/base")
    same(adapted, continued(tmp_path / "a"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "/nowhere/base"}, "is not there: /nowhere/base"),
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({"peft_type": "IA3"}, "an adapter of the kind IA3"),
        ({"megatron_config": {"a": 1}}, "names a Python module to import"),
    ],
)
def test_what_cannot_be_started_from_is_reported(base: Path, tmp_path: Path, changes: Any, message: str) -> None:
    trained(base, tmp_path / "a")
    edit(tmp_path / "a", **changes)
    with pytest.raises(UserError, match=message) as caught:
        find_adapter(str(tmp_path / "a"))
    assert str(tmp_path / "a") in f"{caught.value.where} {caught.value}" and caught.value.remedy


def test_pickled_weights_are_refused(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(UserError, match="pickled weights") as caught:
        continued(tmp_path / "a")
    assert "weights_only=True" in caught.value.remedy


@pytest.mark.parametrize("fault", ["missing", "unused", "shape"])
def test_weights_that_do_not_fit_are_reported(base: Path, tmp_path: Path, fault: str) -> None:
    trained(base, tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[0]
    if fault == "missing":
        del weights[name]
    else:
        weights[name if fault == "shape" else f"more.{name}"] = torch.zeros(3, 3)
    save_file(weights, file)
    with pytest.raises(UserError, match=r"do not fit its base .*base"):
        continued(tmp_path / "a")


def test_a_base_that_lacks_weights_is_not_made_up(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "a")
    weights = load_file(base / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights.*model\.norm\.weight") as caught:
        continued(tmp_path / "a")
    assert "--merge" in caught.value.remedy


def test_other_targets_than_the_adapters_are_refused(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", targets=["q_proj", "v_proj"])
    continued(tmp_path / "a", targets=["v_proj", "q_proj"])
    with pytest.raises(UserError, match="names 7 modules, the adapter that is continued is on 2") as caught:
        continued(tmp_path / "a", targets="all-linear")
    assert "adapter.start: merge" in caught.value.remedy


def test_a_run_means_its_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no model/ yet") as caught:
        resolve_model(str(tmp_path))
    assert "finetune export" in caught.value.remedy
    (tmp_path / "model").mkdir()
    assert resolve_model(str(tmp_path)) == str(tmp_path / "model")


def test_new_tokens_that_the_adapter_does_not_train_are_refused(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", new_tokens=(40, 41))
    values = {
        "name": "a",
        "task": "causal_lm",
        "model": {"source": str(tmp_path / "a")},
        "adapter": {"targets": ["q_proj"]},
    }
    recipe = recipe_type(CARDS["causal_lm"])(**values, data={"train": "a.jsonl"})
    model = load_model(
        transformers.AutoModelForCausalLM, recipe.model, load_config(recipe.model), dtype=torch.float32, seed=2
    )[0]
    with pytest.raises(UserError, match=r"model\.new_tokens: .* 1 of the new tokens \(ids 42\)"):
        adapt(model, recipe, "CAUSAL_LM", [], new_tokens=[40, 41, 42])
    assert adapt(model, recipe, "CAUSAL_LM", [], new_tokens=[40, 41]) is not None
