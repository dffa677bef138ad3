"""The model card's header is what the hub takes; its text names the figures and no folder of this machine."""

import yaml
from huggingface_hub import ModelCard

from finetune.tracking.card import model_card
from finetune.tracking.run import resolved
from tests.unit.tracking.conftest import make_recipe

FIGURES = {"loss": 0.41234, "accuracy": 0.8612, "f1_macro": 0.85, "test_f1_micro": 0.8, "steps": 7, "best_metric": "x"}


def test_header_and_figures_of_a_fine_tuned_hub_model():
    card = ModelCard(model_card(make_recipe(), FIGURES, facts={"ranks": 2, "parameters": 22_713_216}))
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "org/model",
        "base_model_relation": "finetune",
        "datasets": ["org/set"],
        "metrics": ["accuracy", "f1"],
        "tags": ["finetune", "text-classification"],
    }
    for part in ("| loss | 0.4123 |", "| accuracy | 0.8612 |", "| test_f1_micro | 0.8000 |", "22.7M", "# demo"):
        assert part in card.text
    assert "steps |" not in card.text and "best_metric" not in card.text
    recipe = card.text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe)["training"]["global_batch"] == resolved(make_recipe())["training"]["global_batch"]


def test_an_adapter_of_a_local_model_names_no_folder():
    recipe = make_recipe(
        task="causal_lm", adapter={"rank": 4}, model={"source": "/home/me/llama"}, data={"train": "/home/me/a.jsonl"}
    )
    card = ModelCard(model_card(recipe, {}))
    assert card.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["finetune", "causal-lm", "lora"],
    }
    assert "/home/me" not in card.content and "`llama`" in card.text
    assert "AutoPeftModelForCausalLM" in card.text and "## Figures" not in card.text


def test_backticks_in_a_recipe_do_not_break_out_of_the_block():
    recipe = make_recipe(data={"train": "org/set", "columns": {"text": "a```b\n# heading"}})
    card = model_card(recipe, {})
    assert card.rstrip().endswith("````") and "````yaml" in card


def test_random_weights_have_no_base_model():
    card = ModelCard(model_card(make_recipe(model={"source": "llama", "init": "config"}), {}))
    assert "base_model" not in card.data.to_dict() and "random weights" in card.text
