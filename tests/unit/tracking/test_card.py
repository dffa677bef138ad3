"""The model card's header is what the hub takes; its text names the figures and no folder of this machine."""

import json

import yaml
from huggingface_hub import ModelCard

from finetune.tracking.card import model_card
from finetune.tracking.figures import figures_of
from finetune.tracking.run import shown
from tests.unit.tracking.conftest import make_recipe

FIGURES = {"loss": 0.41234, "accuracy": 0.8612, "f1_macro": 0.85, "test_accuracy": 0.8, "roc_auc": float("nan")}
FACTS = {"ranks": 2, "parameters": 22_713_216, "precision": "fp32", "total_steps": 150, "steps_per_epoch": 150}


def test_header_and_figures_of_a_fine_tuned_hub_model():
    card = ModelCard(model_card(make_recipe(training={"epochs": 1}), FIGURES, facts=FACTS, step=75))
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "org/model",
        "base_model_relation": "finetune",
        "datasets": ["org/set"],
        "metrics": ["accuracy", "f1", "roc_auc"],
        "tags": ["finetune", "text-classification"],
    }
    for part in (
        "# demo", "`org/model` fine-tuned for text classification.",
        "The weights are those of step 75 of 150 (epoch 0.50).\n\n| metric | validation | test |\n|---|---|---|\n",
        "| loss | 0.4123 |  |", "| accuracy | 0.8612 | 0.8000 |", "- length: 1 epoch (150 steps)\n", "22.7M",
        "- hardware: 2 ranks on cpu, fp32", "AutoModelForSequenceClassification, AutoTokenizer\n",
    ):  # fmt: skip
        assert part in card.text, part
    assert "nan" not in card.text
    recipe = card.text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe)["training"]["global_batch"] == shown(make_recipe())["training"]["global_batch"]


def test_rows_that_are_in_train_as_well_are_named_under_the_figures():
    facts = {**FACTS, "validation rows in train": "2 of 40 rows"}
    said = "validation: 2 of 40 rows are in train as well, so its figures are not those on new data."
    card = model_card(make_recipe(), FIGURES, facts=facts)
    assert f"| f1\\_macro | 0.8500 |  |\n\n{said}\n\n## Use" in card, card
    assert said not in model_card(make_recipe(), FIGURES, facts=FACTS) and said not in model_card(
        make_recipe(), {}, facts=facts
    )


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
    assert "AutoPeftModelForCausalLM" in card.text and "They were not evaluated." in card.text
    assert "A LoRA adapter of rank 4 for `llama`, trained for language modeling." in card.text


def test_a_base_that_exists_nowhere_else_is_named_with_its_remedy():
    random = make_recipe(task="causal_lm", adapter={"rank": 4}, model={"source": "llama", "init": "config"})
    assert "exist nowhere else" in model_card(random, {}) and "`finetune export --merge`" in model_card(random, {})
    assert "`base/` has it, merged" in model_card(make_recipe(task="causal_lm", adapter={"start": "merge"}), {})
    assert "base/" not in model_card(make_recipe(task="causal_lm", adapter={"rank": 4}), {})


def test_a_merged_adapter_is_a_model_of_transformers():
    recipe = make_recipe(task="causal_lm", adapter={"rank": 4, "kind": "dora"})
    card = ModelCard(model_card(recipe, {"loss": 2.0}, merged=True))
    header = card.data.to_dict()
    assert header["library_name"] == "transformers" and header["base_model_relation"] == "finetune"
    assert "`org/model` fine-tuned for language modeling with a DoRA adapter of rank 4, which is merged" in card.text
    assert "Peft" not in card.text and "AutoModelForCausalLM.from_pretrained(folder)" in card.text
    assert "| metric | validation |\n|---|---|\n| loss | 2 |" in card.text


def test_figures_are_those_of_the_step_that_is_exported(run):
    rows = [
        {"step": 10, "split": "train", "loss": 0.1, "time": 1.0},
        {
            "step": 10,
            "epoch": 1.0,
            "split": "validation",
            "loss": 0.5373,
            "accuracy": 0.7,
            "roc_auc": None,
            "time": 1.0,
        },
        {"step": 20, "epoch": 2.0, "split": "validation", "loss": 0.5340, "accuracy": 0.6, "time": 1.0},
        {"step": 20, "epoch": 2.0, "split": "test", "loss": 0.6, "time": 1.0},
    ]
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.update(summary={"best_step": 10, "best_value": 0.7, "best_metric": "accuracy", "test_loss": 0.6, "steps": 20})
    assert figures_of(run, 10) == {"loss": 0.5373, "accuracy": 0.7, "test_loss": 0.6}
    assert figures_of(run, 20) == {"loss": 0.5340, "accuracy": 0.6}
    assert figures_of(run, 15) == {}


def test_backticks_in_a_recipe_do_not_break_out_of_the_block():
    recipe = make_recipe(data={"train": "org/set", "columns": {"text": "a```b\n# heading"}})
    card = model_card(recipe, {})
    assert card.rstrip().endswith("````") and "````yaml" in card


def test_random_weights_have_no_base_model():
    card = ModelCard(model_card(make_recipe(model={"source": "llama", "init": "config"}), {}))
    assert (
        "base_model" not in card.data.to_dict()
        and "`llama` trained for text classification from random weights." in card.text
    )
