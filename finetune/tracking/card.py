"""The model card: README.md of a result, with its figures, how to load it, and the recipe that made it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from finetune.recipe.draft import DEFAULT_EPOCHS
from finetune.recipe.recipe import Recipe
from finetune.recipe.yaml import dump
from finetune.tracking.console import figure
from finetune.tracking.run import describe_versions, resolved
from finetune.units import format_count

_PIPELINES = {  # the hub's names of tasks
    "text_classification": "text-classification",
    "causal_lm": "text-generation",
    "image_classification": "image-classification",
}
_LOADERS = {
    "text_classification": ("AutoModelForSequenceClassification", "AutoTokenizer"),
    "causal_lm": ("AutoModelForCausalLM", "AutoTokenizer"),
    "image_classification": ("AutoModelForImageClassification", "AutoImageProcessor"),
}
_PEFT_LOADERS = ("text_classification", "causal_lm")  # transformers itself loads the adapters of others
_HUB_METRICS = {
    "accuracy": "accuracy",
    "f1_macro": "f1",
    "f1_micro": "f1",
    "precision": "precision",
    "recall": "recall",
    "matthews": "matthews_correlation",
    "roc_auc": "roc_auc",
    "perplexity": "perplexity",
}
_NOT_QUALITY = ("steps", "seconds", "best_step")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def model_card(recipe: Recipe, figures: Mapping[str, Any], *, facts: Mapping[str, Any] | None = None) -> str:
    """README.md with a YAML header that the hub takes.

    figures: metric -> number ("test_accuracy" and the like too); what is no finite number is left out.
    facts: as the loop told them (ranks, parameters, examples, ...). A licence is never guessed: it is left out.
    """
    told = dict(facts or {})
    shown = {
        key: figure(value)
        for key, value in figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in _NOT_QUALITY
    }
    text = dump(_without_folders(resolved(recipe)))
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    environment = jinja2.Environment(  # Markdown, not HTML: values are put in code spans or fences
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2").render(
        header=yaml.safe_dump(card_header(recipe, figures), sort_keys=False, allow_unicode=True),
        name=recipe.name,
        summary=_summary(recipe),
        figures=shown,
        use=_use(recipe),
        training=_training(recipe, told),
        recipe=text,
        fence="`" * max(3, longest + 1),
    )


def card_header(recipe: Recipe, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The hub's metadata: only ids that can be on the hub, no folders of this machine, no licence."""
    header: dict[str, Any] = {"library_name": "peft" if recipe.adapter else "transformers"}
    if recipe.task in _PIPELINES:
        header["pipeline_tag"] = _PIPELINES[recipe.task]
    if recipe.model.init == "pretrained" and _HUB_ID.match(recipe.model.source):
        header["base_model"] = recipe.model.source
        header["base_model_relation"] = "adapter" if recipe.adapter else "finetune"
    sets = [source.source for source in recipe.data.train if source.format in ("auto", "hub")]
    datasets = list(dict.fromkeys(name for name in sets if _HUB_ID.match(name) and not Path(name).suffix))
    if datasets:
        header["datasets"] = datasets
    names = [key.removeprefix("test_").removeprefix("last_") for key in figures]
    metrics = list(dict.fromkeys(_HUB_METRICS[name] for name in names if name in _HUB_METRICS))
    if metrics:
        header["metrics"] = metrics
    header["tags"] = ["finetune", recipe.task.replace("_", "-"), *([recipe.adapter.kind] if recipe.adapter else [])]
    return header


def _summary(recipe: Recipe) -> str:
    model = f"`{_tail(recipe.model.source)}`" if recipe.model.source else "the model"
    if recipe.adapter:
        how = f"a {recipe.adapter.kind} adapter of rank {recipe.adapter.rank} for {model}"
    elif recipe.model.init == "config":
        how = f"{model}, from random weights"
    else:
        how = f"{model}, all weights"
    return f"Trained for {recipe.task.replace('_', ' ')}: {how}."


def _training(recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, str]:
    training = recipe.training
    length = f"{training.steps} steps" if training.steps else f"{training.epochs or DEFAULT_EPOCHS} epochs"
    found = {
        "length": length,
        "global batch": str(training.global_batch),
        "learning rate": f"{training.learning_rate:g}, {training.schedule}, {training.optimizer}",
        "seed": str(recipe.seed),
    }
    if isinstance(facts.get("examples"), Mapping):
        found["examples"] = ", ".join(f"{count:,} {split}" for split, count in facts["examples"].items())
    if facts.get("parameters"):
        trained = facts.get("trainable_parameters", facts["parameters"])
        found["parameters"] = f"{format_count(facts['parameters'])}, {format_count(trained)} trained"
    if facts.get("ranks"):
        found["trained on"] = f"{facts['ranks']} × {facts.get('device', 'cpu')}, {facts.get('precision', '')}".rstrip(
            ", "
        )
    versions = describe_versions()
    found["versions"] = ", ".join(
        f"{name} {versions[name]}" for name in ("finetune", "torch", "transformers") if name in versions
    )
    return found


def _use(recipe: Recipe) -> str:
    model, processor = _LOADERS.get(recipe.task, ("AutoModel", "AutoProcessor"))
    library = "transformers"
    if recipe.adapter and recipe.task in _PEFT_LOADERS:
        model, library = model.replace("AutoModel", "AutoPeftModel"), "peft"
    return (
        f"from {library} import {model}\nfrom transformers import {processor}\n\n"
        f'model = {model}.from_pretrained("path/to/this/folder")\n'
        f'processor = {processor}.from_pretrained("path/to/this/folder")'
    )


def _tail(source: str) -> str:
    """A folder of this machine by its last part alone; hub ids and packages whole."""
    return Path(source).name if source.startswith("/") else source


def _without_folders(value: Any) -> Any:
    """The recipe for the public: files by their names, not where they lay on this machine."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return _tail(value) if isinstance(value, str) else value
