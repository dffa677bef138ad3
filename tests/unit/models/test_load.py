"""Proves that weights come from safe files only, that new ones depend on the seed alone, and that what cannot be loaded is
told in words, with a remedy.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.errors import UserError
from finetune.models.config import load_config
from finetune.models.load import load_model
from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection


def _load(folder: Path | str, labels: list[str] | None = None, **options: Any) -> Any:
    model = ModelSection(source=str(folder))
    named = {"id2label": dict(enumerate(labels)), "label2id": {x: i for i, x in enumerate(labels)}} if labels else {}
    options = {"dtype": torch.float32, "seed": 3, **options}
    return load_model(AutoModelForSequenceClassification, model, load_config(model, **named), **options)


def test_a_trained_head_is_kept(tiny_bert: Path) -> None:
    one, loading = _load(tiny_bert)
    other, _ = _load(tiny_bert, seed=4)
    assert loading.facts() == {}
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_a_new_head_has_the_new_classes_and_depends_on_the_seed_alone(tiny_bert: Path) -> None:
    kept, _ = _load(tiny_bert)
    heads = []
    for seed in (3, 3, 4):
        torch.rand(int(torch.randint(9, ())))  # whatever was drawn before
        model, loading = _load(tiny_bert, ["yes", "no"], new_head=True, seed=seed)
        assert loading.new_head == ("classifier",)
        assert model.num_labels == 2 and model.config.label2id == {"yes": 0, "no": 1}
        assert torch.equal(model.bert.pooler.dense.weight, kept.bert.pooler.dense.weight)
        heads.append(model.classifier.weight.detach())
    assert heads[0].shape == (2, 16)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert 0.01 < heads[0].std() < 0.03  # the model's initializer_range, 0.02


def test_a_body_alone_gets_the_same_new_head(tiny_bert: Path, tmp_path: Path) -> None:
    _load(tiny_bert)[0].bert.save_pretrained(tmp_path)
    model, loading = _load(tmp_path, ["yes", "no"])
    same, _ = _load(tiny_bert, ["yes", "no"], new_head=True)
    assert loading.new_head == ("classifier",)
    assert torch.equal(model.classifier.weight, same.classifier.weight)


def test_other_shapes_without_a_new_head_are_reported(tiny_bert: Path) -> None:
    with pytest.raises(UserError, match="do not have the shapes") as caught:
        _load(tiny_bert, ["yes", "no"])
    assert "new_head" in caught.value.remedy


def test_pickled_weights_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        _load(folder)
    assert "pickled" in caught.value.remedy and "save_pretrained" in caught.value.remedy


def test_damaged_and_foreign_files_are_reported(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(UserError, match="damaged"):
        _load(folder)
    from safetensors.torch import save_file

    save_file({"something.else": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ of the model's"):
        _load(folder)


@pytest.mark.parametrize(
    ("section", "what", "remedy"),
    [
        ({"source": "llama"}, "which has no weights", "init: config"),
        ({"source": "llama", "init": "config", "config": {"hiden_size": 8}}, "no setting 'hiden_size'", "hidden_size"),
        ({"source": "llama", "init": "config", "config": {"hidden_size": "big"}}, "hidden_size", "Correct"),
        ({"source": "nobody/nothing"}, "hub cannot be reached", "needs the network"),
    ],
)
def test_a_wrong_configuration_is_reported(section: dict[str, Any], what: str, remedy: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        load_config(ModelSection(**section))
    assert remedy in caught.value.remedy


def test_a_folder_that_holds_something_else_is_reported(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="the adapter cannot be read"):
        load_config(ModelSection(source=str(tmp_path)))
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no config\.json") as caught:
        load_config(ModelSection(source=str(tmp_path)))
    assert "folder model inside" in caught.value.remedy


def test_a_model_that_cannot_do_the_task_is_reported() -> None:
    model = ModelSection(source="resnet", init="config")
    with pytest.raises(UserError, match="cannot do this task"):
        load_model(AutoModelForCausalLM, model, load_config(model), dtype=torch.float32, seed=0)


def test_attention_that_is_not_installed_is_reported(tiny_bert: Path) -> None:
    model = ModelSection(source=str(tiny_bert), attention="flash_attention_2")
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"model\.attention: flash_attention_2"):
            load_model(AutoModelForSequenceClassification, model, load_config(model), dtype=torch.float32, seed=0)


_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
}


def test_random_weights_depend_on_the_seed_alone_and_vocabulary_grows() -> None:
    model = ModelSection(source="llama", init="config", config=_LLAMA, gradient_checkpointing=True)
    built = []
    for seed in (1, 1, 2):
        torch.rand(3)
        loaded, _ = load_model(
            AutoModelForCausalLM, model, load_config(model), dtype=torch.bfloat16, seed=seed, vocabulary=50
        )
        built.append(loaded)
    weights = [loaded.model.layers[0].mlp.up_proj.weight for loaded in built]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert built[0].lm_head.weight.shape[0] == 50 and weights[0].dtype == torch.bfloat16
    assert built[0].model.gradient_checkpointing and built[0].config.use_cache is False


def test_a_model_type_is_not_the_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = load_config(ModelSection(source="llama", init="config", config=_LLAMA))
    folder.vocab_size = 77
    folder.save_pretrained("llama")
    (tmp_path / "llama" / "tokenizer.json").write_text("{}")
    fresh = ModelSection(source="llama", init="config", config=_LLAMA)
    assert load_config(fresh).vocab_size == 40  # the type, with the recipe's own sizes
    assert load_config(ModelSection(source=str(tmp_path / "llama"), init="config")).vocab_size == 77
    assert load_config(ModelSection(source="llama")).vocab_size == 77  # pretrained weights lie in a folder
    with pytest.raises(UserError, match="a model type, llama, which has no tokenizer"):
        load_tokenizer(fresh)
